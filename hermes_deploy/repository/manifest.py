"""manifest.json: what the artifact is and the sha256 of every file in it.

Written last by the build; read first by inspect, validate and serve. Nothing is loaded that the
manifest does not name. Pydantic at the border: an unknown key or a wrong type is an ArtifactError.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermes_deploy.errors import ArtifactError

MANIFEST = "manifest.json"
SCHEMA = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Frozen):
    sha256: str
    size: int = Field(ge=0)


class ModelEntry(_Frozen):
    name: str
    source: str
    revision: str | None
    sha256: str
    family: str
    architecture: str
    parameters: int
    license_id: str
    weights_note: str


class GateEntry(_Frozen):
    """`measures`: kl, top1, perplexity_ratio, tensor_error, positions. `reference` says what it was."""

    passed: bool
    reference: str
    measures: dict[str, float]
    thresholds: dict[str, float]


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
    tensors_sha256: str
    gated_tensors_sha256: str
    gate: GateEntry


class Manifest(_Frozen):
    """`max_context` tokens and `max_slots` chats that the engines were built for."""

    schema_version: int = SCHEMA
    model: ModelEntry
    recipe: dict[str, Any]
    max_context: int
    max_slots: int
    targets: list[TargetEntry]
    versions: dict[str, str]
    created: str
    files: dict[str, FileEntry]


def hash_file(path: Path) -> FileEntry:
    """sha256 and size of one file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return FileEntry(sha256=digest.hexdigest(), size=size)


def list_files(folder: Path) -> list[str]:
    """Paths of everything below `folder` but folders, relative, sorted, without the manifest itself.

    Links are not followed. Raises OSError for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        links = [name for name in folders if Path(root, name).is_symlink()]
        found += [str(Path(root, name).relative_to(folder)) for name in (*files, *links)]
    return sorted(set(found) - {MANIFEST})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.model_dump(), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Raises ArtifactError when there is none or it is not one of ours."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder} is not a hermes-deploy artifact: it has no {MANIFEST}. "
            f"Build one with: hermes-deploy build MODEL --output {folder}"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
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
