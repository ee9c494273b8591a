"""manifest.json: what the artifact is and the sha256 of every file in it.

Written last by the build; read first by inspect, validate and serve. Nothing is loaded that the
manifest does not name. Pydantic at the border: an unknown key or a wrong type is an ArtifactError.
docs/manifest.schema.json is made from these classes (scripts/generate_manifest_schema.py).

One file may lie beside the manifest without being named in it: the signature, which covers the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from hermes_deploy.errors import ArtifactError

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"
SCHEMA: Final = 2

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


LONGEST_REASON = 500
"""Characters."""


def reason_trouble(reason: str) -> str:
    """Why `reason` cannot stand in the manifest and on terminals and in logs, "" when it can."""
    if not any(letter.isalnum() for letter in reason):
        return "says nothing in words"
    if len(reason) > LONGEST_REASON:
        return f"has {len(reason):,} characters; at most {LONGEST_REASON} are taken"
    # a line end would let it write log lines of its own, an escape dress a terminal, half a surrogate is no UTF-8
    strange = [c for c in reason if c in "\u2028\u2029" or unicodedata.category(c) in ("Cc", "Cs") or c in _TURNS]
    return f"has the character {strange[0]!a}; it must be one line of plain text" if strange else ""


_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of what follows, on the rest of the line too."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Frozen):
    """`size` in bytes."""

    sha256: Sha256
    size: int = Field(ge=0)


class AdapterEntry(_Frozen):
    """The LoRA that was merged into the weights before anything else was done with them.

    `base_model`: what the adapter says it was trained on, "" where it says nothing. `modules`: kinds of
    the linears that it changes (`q_proj`); `merged_tensors`: how many weights were changed; `merged_into`:
    the checkpoint as it was before.
    """

    name: str
    sha256: Sha256
    base_model: str
    rank: int = Field(ge=1)
    alpha: FiniteFloat
    modules: list[str]
    merged_tensors: int = Field(ge=1)
    merged_into: str
    merged_into_sha256: Sha256
    license_id: str


class ModelEntry(_Frozen):
    """`sha256`: of all files of the checkpoint together, and of the adapter. `source`, `revision`:
    where it came from. `weights_note`: what the weights are when they are not the original."""

    name: str
    source: str
    revision: str | None
    sha256: Sha256
    family: str
    architecture: str
    parameters: int = Field(ge=1)
    license_id: str
    weights_note: str
    adapter: AdapterEntry | None


class CalibrationEntry(_Frozen):
    """Texts that the quantizer saw. `source`: "packaged", or the name of the file that was given.

    `sha256`: of that file's bytes. `chats` were used, with `tokens` in all.
    """

    source: str
    sha256: Sha256
    chats: int = Field(ge=1)
    tokens: int = Field(ge=1)


class GateEntry(_Frozen):
    """How far the build's answers are from the reference's, `reference` in words.

    `measures` by name: kl (mean, nats), top1 (share, 0..1), perplexity_ratio, tensor_error,
    positions and more; `thresholds` by the name of the recipe's limit. `problems`: each measure that
    is over its limit, in words; empty exactly when the gate passed.
    """

    passed: bool
    reference: str
    measures: dict[str, FiniteFloat]
    thresholds: dict[str, FiniteFloat]
    problems: list[str]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.passed == bool(self.problems):
            raise ValueError(f"passed is {self.passed} with {len(self.problems)} problems")
        return self


class TargetEntry(_Frozen):
    """One target's engine. `engine_files` are paths in the artifact; several targets may share them.

    `tensors_sha256`: hash over the names and bytes of every weight that went into the engine.
    `gated_tensors_sha256`: the same of the graph that the gate ran; equal, or the build failed.
    """

    name: str
    engine: str
    precision: str
    block_size: int | None
    engine_files: list[str]
    tensors_sha256: Sha256
    gated_tensors_sha256: Sha256
    gate: GateEntry


class Manifest(_Frozen):
    """`max_context` tokens and `max_slots` chats that the engines were built for.

    `degraded`: the reason that was given for shipping a build whose gate failed; null when every gate
    passed. `versions`: of python and of every distribution that could take part, by name; `machine`:
    the processor's architecture. `created`: ISO 8601, UTC; the only clock in the artifact.
    `files`: every file but this one and the signature, by its path in the artifact.
    """

    schema_version: Literal[2]
    model: ModelEntry
    recipe: dict[str, Any]
    calibration: CalibrationEntry | None
    max_context: int = Field(ge=1)
    max_slots: int = Field(ge=1)
    targets: list[TargetEntry] = Field(min_length=1)
    degraded: str | None
    versions: dict[str, str]
    machine: str
    created: str
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        failed = [target.name for target in self.targets if not target.gate.passed]
        if failed and not (self.degraded or "").strip():
            raise ValueError(f"the gate of {', '.join(failed)} failed and no reason to ship it is given")
        if self.degraded is not None and not failed:
            raise ValueError("a reason for a failed gate is given and every gate passed")
        if self.degraded is not None and (trouble := reason_trouble(self.degraded)):
            raise ValueError(f"the reason for a failed gate {trouble}")
        return self


def hash_file(path: Path) -> FileEntry:
    """sha256 and size of one file, read in 1 MiB pieces."""
    with path.open("rb") as stream:
        return hash_stream(stream)


def hash_stream(stream: IO[bytes]) -> FileEntry:
    """The same, of what is still to be read in `stream`."""
    digest = hashlib.sha256()
    size = 0
    while piece := stream.read(1 << 20):
        digest.update(piece)
        size += len(piece)
    return FileEntry(sha256=digest.hexdigest(), size=size)


def list_files(folder: Path) -> list[str]:
    """Paths of everything below `folder` but folders, relative, sorted, without the manifest and its signature.

    Links are not followed. Raises OSError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        links = [name for name in folders if Path(root, name).is_symlink()]
        found += [str(Path(root, name).relative_to(folder)) for name in (*files, *links)]
    return sorted(set(found) - {MANIFEST, SIGNATURE})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.model_dump(), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Raises ArtifactError when there is none or it is not one of ours."""
    path = folder / MANIFEST
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited on for ever
            raise ArtifactError(f"{path} is not a regular file. Copy the artifact again from where it was built.")
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder} is not a hermes-deploy artifact: it has no {MANIFEST}. "
            f"Build one with: hermes-deploy build MODEL --output {folder}"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Build the artifact again.") from None
    if isinstance(data, dict) and data.get("schema_version") != SCHEMA:
        raise ArtifactError(
            f"{path} has schema_version {data.get('schema_version')!r}; this version reads {SCHEMA}. "
            "Build the artifact again with this version of hermes-deploy."
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ArtifactError(f"{path} is damaged: {where}: {first['msg']}. Build the artifact again.") from None


def verify_files(folder: Path, manifest: Manifest) -> list[str]:
    """Every way in which the bytes differ from the manifest, one line each; empty = all as built."""
    try:
        found = set(list_files(folder))
    except OSError as error:
        return [f"{os.path.relpath(error.filename, folder)}: cannot be read: {error.strerror}"]
    named = set(manifest.files)
    problems = [f"{name}: missing" for name in sorted(named - found)]
    if (folder / SIGNATURE).is_symlink() or ((folder / SIGNATURE).exists() and not (folder / SIGNATURE).is_file()):
        problems.append(f"{SIGNATURE}: is not a regular file")
    problems += [f"{name}: not named in the manifest" for name in sorted(found - named)]
    for name in sorted(found & named):
        problem = _difference(folder / name, manifest.files[name])
        if problem:
            problems.append(f"{name}: {problem}")
    return problems


def _difference(path: Path, entry: FileEntry) -> str:
    """How the file differs from its entry, "" when it does not."""
    if path.is_symlink():
        return "is a symbolic link; the build wrote a regular file"
    if not path.is_file():
        # reading a pipe would wait forever
        return "is not a regular file"
    try:
        size = path.stat().st_size
        if size != entry.size:
            return f"size is {size}, manifest says {entry.size}"
        return "" if hash_file(path).sha256 == entry.sha256 else "sha256 differs from the manifest"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
