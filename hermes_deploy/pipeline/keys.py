"""What a stage's result depends on, as one hash. Pure but for reading our own source files.

A key is the sha256 of canonical JSON of the stage's name and of everything that it reads: parts of
the request, keys of the stages before it, versions of the packages that compute, and a fingerprint
of our own code. Two stages of equal keys give the same result, so one of them is enough.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

Stage = Literal["calibrate", "reference", "graph", "gate", "engine"]

_READERS = ("families", "targets", "recipes", "checkpoints")
_NUMBERS = ("numpy", "ml-dtypes", "gguf", "safetensors")

ROOMS: dict[Stage, tuple[str, ...]] = {
    "calibrate": (*_READERS, "graphs", "kernels", "quantization"),
    "reference": (*_READERS, "graphs", "kernels", "quantization", "runtime", "verification"),
    "graph": (*_READERS, "graphs", "kernels", "quantization"),
    "gate": (*_READERS, "chat", "graphs", "kernels", "quantization", "runtime", "verification"),
    "engine": ("families", "targets", "recipes", "machine", "engines"),
}
"""The rooms of our own code that each stage runs; a change in one of them makes the stage run again."""

PACKAGES: dict[Stage, tuple[str, ...]] = {
    "calibrate": _NUMBERS,
    "reference": _NUMBERS,
    "graph": (*_NUMBERS, "onnx", "onnx-ir"),
    "gate": (*_NUMBERS, "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu"),
    "engine": ("onnx",),
}
"""Packages whose version may change a stage's bytes. TensorRT's own stands in the engine's parts."""


@dataclass(frozen=True)
class StageKey:
    """`name`: the stage as the build tells it ("graph cpu"). `model` and `name` are for people and not
    in the hash; `parts` are JSON values, in words."""

    stage: Stage
    name: str
    model: str
    parts: Mapping[str, Any]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", digest_of({"stage": self.stage, "parts": self.parts}))


def stage_key(stage: Stage, name: str, model: str, /, **parts: Any) -> StageKey:
    """The key of a stage that reads `parts`, on this machine with what is installed now."""
    where = {
        "machine": platform.machine(),
        "packages": _versions(PACKAGES[stage]),
        "hermes_deploy": code_fingerprint(ROOMS[stage]),
    }
    return StageKey(stage, name, model, {**parts, **where})


def digest_of(value: Any) -> str:
    """sha256 of canonical JSON: sorted keys, no spaces. Raises TypeError for what is no JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@functools.cache
def code_fingerprint(rooms: tuple[str, ...]) -> str:
    """sha256 over names and bytes of every source and data file of these rooms of the package."""
    package = resources.files("hermes_deploy")
    digest = hashlib.sha256()
    for room in sorted(rooms):
        name = room if (package / room).is_dir() else f"{room}.py"
        for path, data in _sources(name, package / name):
            digest.update(f"{len(path)} {path} {len(data)} ".encode())
            digest.update(data)
    return digest.hexdigest()


def _sources(name: str, place: Any) -> Iterable[tuple[str, bytes]]:
    if place.is_file():
        yield name, place.read_bytes()
        return
    for child in sorted(place.iterdir(), key=lambda child: str(child.name)):
        # what is compiled comes of the sources beside it
        if child.name != "__pycache__" and not str(child.name).endswith(".so"):
            yield from _sources(f"{name}/{child.name}", child)


@functools.cache
def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
