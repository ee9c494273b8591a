"""What this machine can build, asked before any work is done.

Takes target records and a recipe, gives which TensorRT package builds which targets together, or a
TargetError that says what was found, what is needed and what would work here. What is installed and
which GPUs are there is `machine`'s to know. Loads no TensorRT into this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hermes_deploy import machine
from hermes_deploy.errors import TargetError
from hermes_deploy.recipes import Recipe, check_target
from hermes_deploy.targets import TARGETS, Flavour, Target


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
        check_target(recipe, target)
    groups: list[EngineGroup] = []
    together = [t for t in targets if t.engine == "tensorrt" and flavour_for([t]) == "tensorrt_rtx"]
    if together:
        groups.append(EngineGroup("tensorrt_rtx", machine.tensorrt_package("tensorrt_rtx").version, tuple(together)))
    # full TensorRT builds for the GPU that it runs on, so each of its targets is an engine of its own
    groups += [
        EngineGroup("tensorrt", machine.tensorrt_package("tensorrt").version, (t,))
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
    for flavour in machine.FLAVOURS:
        if not any(machine.engine_problem(target, flavour) for target in targets):
            if flavour == "tensorrt" and len(targets) > 1:
                continue
            return flavour
    for target in targets:
        _refuse_alone(target)
    names = ", ".join(t.name for t in targets)
    raise TargetError(f"targets {names} cannot share one engine here; build them one at a time")


def _tensorrt_targets() -> list[str]:
    return [t.name for t in TARGETS.values() if t.engine == "tensorrt"]


def _refuse_alone(target: Target) -> None:
    """Raises TargetError when no package can build for `target` on this machine."""
    if target.engine != "tensorrt":
        raise TargetError(
            f"target {target.name!r} runs on ONNX Runtime and has no TensorRT engine; "
            f"TensorRT targets are: {', '.join(_tensorrt_targets())}"
        )
    trouble = machine.buildable(target)
    if not trouble:
        return
    works = [t.name for t in TARGETS.values() if not machine.buildable(t)]
    raise TargetError(
        f"target {target.name!r} ({target.title}) cannot be built here: {trouble}. "
        f"Targets that work on this machine: {', '.join(works) or 'none'}."
    )
