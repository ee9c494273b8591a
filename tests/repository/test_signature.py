"""A signature says who vouches for an artifact; anything that is not as it was signed is refused in words."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from hermes_deploy.errors import ArtifactError, UsageError
from hermes_deploy.repository.demo import demo_config
from hermes_deploy.repository.manifest import read_manifest, verify_files
from hermes_deploy.repository.signature import check_key, is_signed, sign_artifact, verify_signature
from tests.fixtures.keys import write_keys
from tests.serving.artifact import seal


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_keys(tmp_path_factory.mktemp("keys"), "key")


def make(folder: Path, text: str = "one") -> Path:
    (folder / "hermes_engine/1").mkdir(parents=True)
    (folder / "hermes_engine/1/weights").write_text(text)
    (folder / "MODEL_LICENSE").write_text("none")
    seal(folder, demo_config())
    return folder


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    artifact = make(tmp_path / "artifact")
    sign_artifact(artifact, keys[0])
    return artifact


def standard_verifier(artifact: Path, public: Path) -> subprocess.CompletedProcess[str]:
    """The command of the OpenSSF's own library, which reads every file."""
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(artifact)]
    command += ["--signature", str(artifact / "model.sig"), "--public_key", str(public)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def refused(artifact: Path, public: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        verify_signature(artifact, public)
    return str(error.value)


def test_a_signed_artifact_verifies_here_and_with_the_standard_verifier(signed: Path, keys: tuple[Path, Path]) -> None:
    assert is_signed(signed)
    verify_signature(signed, keys[1])
    assert verify_files(signed, read_manifest(signed)) == []
    assert "model.sig" not in read_manifest(signed).files
    done = standard_verifier(signed, keys[1])
    assert done.returncode == 0, done.stderr


def test_a_signature_by_the_standard_signer_is_accepted_here(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    artifact = make(tmp_path / "artifact")
    command = [sys.executable, "-m", "model_signing", "sign", "key", str(artifact)]
    command += ["--signature", str(artifact / "model.sig"), "--private_key", str(keys[0])]
    subprocess.run(command, check=True, timeout=120)
    verify_signature(artifact, keys[1])


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_the_longer_curves_work_too(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    private, public = write_keys(tmp_path, "key", ec.generate_private_key(curve))
    artifact = make(tmp_path / "artifact")
    sign_artifact(artifact, private)
    verify_signature(artifact, public)


def test_neither_signing_nor_verifying_opens_a_connection(
    tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    artifact = make(tmp_path / "artifact")
    sign_artifact(artifact, keys[0])
    verify_signature(artifact, keys[1])


def test_an_artifact_may_be_moved_and_its_signature_holds_no_path_of_the_machine(
    signed: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    payload = base64.b64decode(json.loads((signed / "model.sig").read_text())["dsseEnvelope"]["payload"])
    assert json.loads(payload)["subject"][0]["name"] == "smollm2"
    assert str(tmp_path).encode() not in payload
    moved = shutil.move(signed, tmp_path / "elsewhere")
    verify_signature(Path(moved), keys[1])


@pytest.mark.parametrize("name", ["hermes_engine/1/weights", "MODEL_LICENSE", "manifest.json"])
def test_every_changed_byte_is_found_by_the_files_or_by_the_signature(
    signed: Path, keys: tuple[Path, Path], name: str
) -> None:
    path = signed / name
    original = path.read_bytes()
    unnoticed = []
    # every byte of small files, and enough of the manifest to meet each kind of value
    for at in range(0, len(original), max(1, len(original) // 100)):
        path.write_bytes(original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :])
        try:
            verify_signature(signed, keys[1])
            if not verify_files(signed, read_manifest(signed)):
                unnoticed.append(at)
        except ArtifactError:
            continue
    assert unnoticed == []
    assert standard_verifier(signed, keys[1]).returncode != 0


def test_a_manifest_that_was_made_to_fit_changed_files_is_refused(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / "hermes_engine/1/weights").write_text("bad")
    seal(signed, demo_config())
    assert verify_files(signed, read_manifest(signed)) == []
    message = refused(signed, keys[1])
    assert "is not the signature of this artifact" in message
    assert "hermes_engine/1/weights" in message
    assert "manifest.json" in message


def test_the_signature_of_another_artifact_is_refused(signed: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    other = make(tmp_path / "other", "two")
    shutil.copy(signed / "model.sig", other)
    assert "is not the signature of this artifact" in refused(other, keys[1])


def test_a_wrong_key_is_refused(signed: Path, tmp_path: Path) -> None:
    _, public = write_keys(tmp_path, "other")
    assert f"was made with another key than the private part of {public}" in refused(signed, public)


def test_a_signature_that_only_claims_the_right_key_is_refused(
    signed: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    """The name of the key in the file is only a hint; the forger copies it."""
    private, _ = write_keys(tmp_path, "other")
    right = json.loads((signed / "model.sig").read_text())
    sign_artifact(signed, private)
    forged = json.loads((signed / "model.sig").read_text())
    forged["verificationMaterial"] = right["verificationMaterial"]
    (signed / "model.sig").write_text(json.dumps(forged))
    assert "was not made with the private part of" in refused(signed, keys[1])


def test_an_artifact_without_a_signature_is_refused_where_one_is_required(
    tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    artifact = make(tmp_path / "artifact")
    assert not is_signed(artifact)
    message = refused(artifact, keys[1])
    assert "is not signed" in message
    assert "--sign-with" in message


def _drop(key: str) -> Callable[[str], str]:
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != key})


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda text: text[:-20],
        lambda _: "[]",
        lambda _: "null",
        lambda _: "\udcff",
        lambda _: "[" * 100_000,
        lambda _: " " * (1 << 24) + "{}",
        _drop("dsseEnvelope"),
        _drop("verificationMaterial"),
        _drop("mediaType"),
        lambda text: json.dumps({**json.loads(text), "dsseEnvelope": {"payload": "e30=", "payloadType": "x"}}),
        lambda text: json.dumps({**json.loads(text), "dsseEnvelope": {"payload": "e30=", "signatures": []}}),
    ],
)
def test_a_damaged_signature_is_an_error_in_words(
    signed: Path, keys: tuple[Path, Path], damage: Callable[[str], str]
) -> None:
    path = signed / "model.sig"
    path.write_bytes(damage(path.read_text()).encode(errors="surrogateescape"))
    assert str(path) in refused(signed, keys[1])


def test_what_is_no_regular_file_is_no_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    path = signed / "model.sig"
    path.rename(signed.parent / "elsewhere.sig")
    path.symlink_to(signed.parent / "elsewhere.sig")
    assert "is not signed" in refused(signed, keys[1])
    assert verify_files(signed, read_manifest(signed)) == ["model.sig: is not a regular file"]
    path.unlink()
    os.mkfifo(path)
    assert "is not signed" in refused(signed, keys[1])


def test_keys_in_the_wrong_place_are_told_apart(signed: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    with pytest.raises(UsageError, match=r"is a private key; .*-pubout"):
        verify_signature(signed, private)
    with pytest.raises(UsageError, match="is a public key; signing takes the private one"):
        check_key(public)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file.*openssl genpkey"),
        (b"", "is no .* key in PEM form"),
        (b"ssh-ed25519 AAAA", "is no .* key in PEM form"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "is no .* key in PEM form"),
        (bytes(range(256)) * 300, "more than 65,536 bytes"),
    ],
)
def test_a_file_that_is_no_key_is_refused_with_how_to_make_one(
    signed: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    for use in (check_key, lambda key: verify_signature(signed, key)):
        with pytest.raises(UsageError, match=message) as error:
            use(path)
        assert "openssl" in str(error.value)


def test_a_folder_or_a_pipe_is_no_key(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UsageError, match="is not a regular file"):
            check_key(path)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (rsa.generate_private_key(65537, 2048), "RSA"),
        (ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
    ],
)
def test_a_key_of_another_kind_is_refused_with_the_kinds_that_work(
    signed: Path, tmp_path: Path, key: PrivateKeyTypes, kind: str
) -> None:
    private, public = write_keys(tmp_path, "key", key)
    for use in (lambda: check_key(private), lambda: verify_signature(signed, public)):
        with pytest.raises(UsageError, match=f"key of kind {kind}; .*P-256, P-384, P-521"):
            use()


def test_an_encrypted_key_is_refused_with_what_to_do(tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path, "key", password=b"secret")
    with pytest.raises(UsageError, match=r"is encrypted.*openssl pkey"):
        check_key(private)


def test_a_key_that_others_can_read_is_warned_about(
    tmp_path: Path, keys: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_key(keys[0])
        assert caplog.text == ""
        open_key = tmp_path / "open"
        shutil.copy(keys[0], open_key)
        open_key.chmod(0o644)
        check_key(open_key)
    assert f"chmod 600 {open_key}" in caplog.text


def test_without_the_library_it_says_what_to_install(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for use in (lambda: check_key(keys[0]), lambda: verify_signature(signed, keys[1])):
        with pytest.raises(UsageError, match=r"pip install 'hermes-deploy\[sign\]'"):
            use()
