"""What this machine can build, asked before any work is done.

Takes target records and a recipe, gives which TensorRT package builds which targets together, or a
TargetError that says what was found, what is needed and what would work here. Loads no TensorRT
into this process: a package is tried in a process of its own, because an import can fail halfway.
"""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hermes_deploy.errors import TargetError
from hermes_deploy.recipes import Recipe
from hermes_deploy.targets import TARGETS, Flavour, Target

FLAVOURS: tuple[Flavour, ...] = ("tensorrt_rtx", "tensorrt")

_INSTALL: dict[Flavour, str] = {
    "tensorrt_rtx": "pip install 'hermes-deploy[tensorrt]'",
    "tensorrt": "pip install 'hermes-deploy[tensorrt-full]' (NVIDIA's own package index)",
}


@dataclass(frozen=True)
class EngineGroup:
    """Targets that share one engine: one call of `build_engine`. `version` is the package's."""

    flavour: Flavour
    version: str
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Availability:
    """`groups` hold every TensorRT target that was asked for, once; ONNX Runtime targets need no engine."""

    groups: tuple[EngineGroup, ...]


def check_available(targets: Sequence[Target], recipe: Recipe) -> Availability:
    """Raises TargetError when one of `targets` cannot be had with `recipe` on this machine."""
    for target in targets:
        recipe.check_target(target)
    groups: list[EngineGroup] = []
    together = [t for t in targets if t.engine == "tensorrt" and flavour_for([t]) == "tensorrt_rtx"]
    if together:
        groups.append(EngineGroup("tensorrt_rtx", installed("tensorrt_rtx").version, tuple(together)))
    # full TensorRT builds for the GPU that it runs on, so each of its targets is an engine of its own
    groups += [
        EngineGroup("tensorrt", installed("tensorrt").version, (t,))
        for t in targets
        if t.engine == "tensorrt" and t not in together
    ]
    return Availability(tuple(groups))


def flavour_for(targets: Sequence[Target]) -> Flavour:
    """The one TensorRT package that builds all of `targets` into one engine on this machine.

    Raises TargetError where there is none, naming what is missing.
    """
    if not targets:
        raise TargetError(f"no target to build an engine for; TensorRT targets are: {', '.join(_tensorrt_targets())}")
    for flavour in FLAVOURS:
        if not any(problem(target, flavour) for target in targets):
            if flavour == "tensorrt" and len(targets) > 1:
                continue
            return flavour
    for target in targets:
        _refuse_alone(target)
    names = ", ".join(t.name for t in targets)
    raise TargetError(f"targets {names} cannot share one engine here; build them one at a time")


def problem(target: Target, flavour: Flavour) -> str | None:
    """Why `flavour` cannot build for `target` on this machine, or None when it can."""
    if flavour not in target.flavours:
        return f"{flavour} has no kernels for {target.name}"
    package = installed(flavour)
    if not package.version:
        return f"{package.trouble} ({_INSTALL[flavour]})"
    if flavour == "tensorrt" and target.compute_capability not in gpu_capabilities():
        found = ", ".join(f"{a}.{b}" for a, b in gpu_capabilities())
        wanted = ".".join(str(n) for n in target.compute_capability or ())
        have = f"found compute capability {found}" if found else "no NVIDIA GPU was found"
        return f"full TensorRT builds only on the GPU itself (compute capability {wanted}); {have}"
    return None


@dataclass(frozen=True)
class Package:
    """`version` is empty when the package cannot be used; then `trouble` says why."""

    version: str
    trouble: str = ""


def installed(flavour: Flavour) -> Package:
    """The version of that TensorRT package as it reports itself when really imported."""
    if importlib.util.find_spec(flavour) is None:
        return Package("", f"the package {flavour} is not installed")
    return _try_import(flavour)


@functools.cache
def _try_import(flavour: Flavour) -> Package:
    code = f"import sys; sys.path[:] = {sys.path!r}; import {flavour} as trt; print(trt.__version__)"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    if tried.returncode == 0:
        return Package(tried.stdout.split()[-1])
    # a broken full TensorRT names the missing library first, then prints advice
    lines = [line for line in tried.stderr.splitlines() if "rror" in line] or ["it crashed"]
    return Package("", f"the package {flavour} is installed but cannot be imported: {lines[-1].strip()}")


@functools.cache
def gpu_capabilities() -> tuple[tuple[int, int], ...]:
    """Compute capabilities of the GPUs of this machine, as nvidia-smi tells them; empty without one."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        return ()
    if asked.returncode != 0:
        return ()
    pairs = (line.strip().split(".") for line in asked.stdout.splitlines() if line.strip())
    return tuple((int(major), int(minor)) for major, minor in pairs)


def _tensorrt_targets() -> list[str]:
    return [t.name for t in TARGETS.values() if t.engine == "tensorrt"]


def _refuse_alone(target: Target) -> None:
    """Raises TargetError when no package can build for `target` on this machine."""
    if target.engine != "tensorrt":
        raise TargetError(
            f"target {target.name!r} runs on ONNX Runtime and has no TensorRT engine; "
            f"TensorRT targets are: {', '.join(_tensorrt_targets())}"
        )
    problems = [problem(target, flavour) for flavour in target.flavours]
    if None in problems:
        return
    works = [
        t.name for t in TARGETS.values() if t.engine != "tensorrt" or any(problem(t, f) is None for f in t.flavours)
    ]
    raise TargetError(
        f"target {target.name!r} ({target.title}) cannot be built here: "
        f"{'; or: '.join(p for p in problems if p)}. Targets that work on this machine: {', '.join(works)}."
    )
