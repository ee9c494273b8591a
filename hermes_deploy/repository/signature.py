"""model.sig: who vouches for an artifact. An OpenSSF model signature, made and checked without a network.

Takes an artifact and a PEM file with an elliptic curve key (P-256, P-384 or P-521: the curves that
`model-signing` takes). Any verifier of the OpenSSF model signing format accepts the file. Nothing here
talks to Sigstore, Rekor or a certificate authority: a key pair is all there is.

The signature names every file of the artifact, manifest.json too, by its sha256. The build has just
hashed these files and serving is about to, so they are not hashed once more here: what is signed, and
what a signature is compared with, are the hashes that manifest.json holds, and its own. Changed bytes
are found by `verify_files`, a changed manifest here; neither is enough alone. (For an engine of 4 GB
that is 3.5 s less of every start, at the 1.2 GB/s that one core does with the SHA instructions.)
"""

from __future__ import annotations

import contextlib
import logging
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes_deploy.errors import ArtifactError, UsageError
from hermes_deploy.repository.manifest import MANIFEST, SIGNATURE, hash_file, read_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes

MAKE_KEY = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out KEY"

_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_LONGEST_KEY = 1 << 16
_LONGEST_SIGNATURE = 1 << 24
"""Bytes. A P-521 key has 400, a signature of an artifact with 30 files 8,000."""

_LOG = logging.getLogger(__name__)


def is_signed(folder: Path) -> bool:
    """Whether there is a signature; whose, and of what, is not looked at."""
    return (folder / SIGNATURE).exists()


def check_key(private_key: Path) -> None:
    """Raises UsageError for a file that `sign_artifact` could not sign with. Warns when others can read it."""
    _need_model_signing()
    _check_curve(private_key, _load_private(private_key, _read_key(private_key)).public_key())
    if private_key.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        _LOG.warning(
            "%s can be read by other users of this machine, who can then sign in your name; run: chmod 600 %s",
            private_key,
            private_key,
        )


def sign_artifact(folder: Path, private_key: Path) -> None:
    """Writes model.sig over manifest.json and everything that it names. The artifact must be complete.

    Raises UsageError for the key, ArtifactError when there is no manifest.
    """
    check_key(private_key)
    from model_signing import signing

    config = signing.Config()  # type: ignore[no-untyped-call]
    config.set_hashing_config(_recorded_hashes(folder)).use_elliptic_key_signer(private_key=private_key)
    config.sign(folder, folder / SIGNATURE)


def verify_signature(folder: Path, public_key: Path) -> None:
    """Raises ArtifactError unless model.sig was made for this manifest with the private part of `public_key`.

    The bytes of the other files are for `verify_files` to compare with the manifest. Raises UsageError
    for a file that is no public key.
    """
    _need_model_signing()
    data = _read_key(public_key)
    _check_curve(public_key, _load_public(public_key, data))
    path = folder / SIGNATURE
    if not path.is_file() or path.is_symlink():
        raise ArtifactError(
            f"{folder} is not signed: it has no file {SIGNATURE}, and a signature by {public_key} is required. "
            "Get the signed artifact, or build it with --sign-with and the private key."
        )
    hashes = _recorded_hashes(folder)
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    config = verifying.Config()  # type: ignore[no-untyped-call]
    config.set_hashing_config(hashes).use_elliptic_key_verifier(public_key=public_key)
    try:
        if path.stat().st_size > _LONGEST_SIGNATURE:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, {_LONGEST_SIGNATURE:,} are allowed")
        # the library prints about old forms of signatures; our stdout may be JSON
        with contextlib.redirect_stdout(sys.stderr):
            config.verify(folder, path)
    except InvalidSignature:
        raise ArtifactError(
            f"{path} was not made with the private part of {public_key}, or was changed since"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(_refusal(path, public_key, error)) from None


def _refusal(path: Path, public_key: Path, error: Exception) -> str:
    """What the library's own words come to. It has no error classes of its own."""
    text = str(error)
    if text.startswith("Key mismatch"):
        return f"{path} was made with another key than the private part of {public_key}"
    if text.startswith("Signature mismatch"):
        return (
            f"{path} is not the signature of this artifact: the manifest was changed after it was signed, or the "
            f"signature is another artifact's.\n  {text}"
        )
    return f"{path} is not a signature that can be read: {type(error).__name__}: {text}"


def _recorded_hashes(folder: Path) -> Any:
    """The library's hasher of a folder, giving what manifest.json says instead of reading the files again."""
    # Digest has no public name; the version is pinned, and a test has the library's own command verify the result
    from model_signing import hashing, manifest
    from model_signing._hashing.hashing import Digest

    ours = read_manifest(folder)
    sha256 = {name: entry.sha256 for name, entry in ours.files.items()}
    sha256[MANIFEST] = hash_file(folder / MANIFEST).sha256
    files = manifest.SerializationType.from_args({"method": "files", "hash_type": "sha256", "allow_symlinks": False})
    items = [files.new_item(name, Digest("sha256", bytes.fromhex(value))) for name, value in sha256.items()]

    class RecordedHashes(hashing.Config):
        def hash(self, *_: Any, **__: Any) -> manifest.Manifest:
            # named by the model: the folder's name is this machine's business
            return manifest.Manifest(ours.model.name, items, files)

    return RecordedHashes()  # type: ignore[no-untyped-call]


def _need_model_signing() -> None:
    try:
        import model_signing  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"signatures need the package {error.name}; run: pip install 'hermes-deploy[sign]'") from None


def _read_key(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a regular file; a key is a PEM file")
        with path.open("rb") as stream:
            data = stream.read(_LONGEST_KEY + 1)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read: {error.strerror}. To make one: {MAKE_KEY}") from None
    if len(data) > _LONGEST_KEY:
        raise UsageError(f"{path} is no key: it has more than {_LONGEST_KEY:,} bytes. To make one: {MAKE_KEY}")
    return data


def _load_private(path: Path, data: bytes) -> PrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if b"-----BEGIN PUBLIC KEY-----" in data:
        raise UsageError(f"{path} is a public key; signing takes the private one, which only the signer has")
    try:
        return load_pem_private_key(data, None)
    except TypeError:  # what cryptography raises for a key that wants a password
        raise UsageError(
            f"{path} is encrypted, and no password is asked for here. "
            f"Store it decrypted where only the build can read it: openssl pkey -in {path} -out KEY"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path} is no private key in PEM form. To make one: {MAKE_KEY}") from None


def _load_public(path: Path, data: bytes) -> PublicKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    take_out = "openssl pkey -in KEY -pubout -out KEY.pub"
    if b"PRIVATE KEY-----" in data:
        raise UsageError(
            f"{path} is a private key; to check a signature takes the public one, and the private one has no business "
            f"on a machine that serves. To take it out: {take_out}"
        )
    try:
        return load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path} is no public key in PEM form. To take it out of a private one: {take_out}") from None


def _check_curve(path: Path, key: PublicKeyTypes) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    found = key.curve.name if isinstance(key, EllipticCurvePublicKey) else type(key).__name__.removesuffix("PublicKey")
    if found not in _CURVES:
        raise UsageError(
            f"{path} is a key of kind {found.strip('_')}; signatures take elliptic curve keys on "
            f"{', '.join(_CURVES.values())}. To make one: {MAKE_KEY}"
        )
