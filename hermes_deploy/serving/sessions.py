"""Opens the Session for a target of the artifact. A new kind of session is opened here, and what it needs of a
machine is said by `machine.runnable`."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from hermes_deploy.engines.sidecar import EngineSidecar, TensorEntry, read_sidecar
from hermes_deploy.errors import ServeError
from hermes_deploy.repository.engine_config import EngineConfig
from hermes_deploy.runtime.session import Session
from hermes_deploy.runtime.sessions.tensorrt import PlanFacts, TensorFacts, open_tensorrt


def open_session(
    config: EngineConfig, target: str, folder: Path, *, slots: int, max_context: int, own_kernels: bool = True
) -> Session:
    """The engine of `target`; its files lie below `folder` (hermes_engine/1).

    `slots` and `max_context` may be lower than what was built, never higher: ServeError. A GPU target runs
    on a GPU or not at all: ServeError that names what is missing. `own_kernels`: of the CPU; where the operators of
    `kernels` are not used, a line on stderr says why.
    """
    for name, asked, built in (("slots", slots, config.max_slots), ("context", max_context, config.max_context)):
        if not 1 <= asked <= built:
            raise ServeError(f"max_{name} is {asked}; this artifact was built for 1 to {built}")
    entry = config.target(target)
    model = folder / entry.model
    if entry.engine == "tensorrt":
        # every byte was compared with the manifest before the server started
        said = plan_facts(read_sidecar(model.parent, verify=False))
        return open_tensorrt(model, said, slots=slots, max_context=max_context)
    if target == "cuda":
        from hermes_deploy.runtime.sessions.ort_cuda import open_ort_cuda

        return open_ort_cuda(model, slots=slots, max_context=max_context)
    from hermes_deploy.runtime.sessions.ort_cpu import OrtCpuSession

    session = OrtCpuSession(model, slots=slots, max_context=max_context, own_kernels=own_kernels)
    if session.without_kernels:
        with suppress(OSError):  # a log that takes nothing is no reason not to serve
            print(
                f"hermes_engine: ONNX Runtime's operators compute, slower: {session.without_kernels}", file=sys.stderr
            )
    return session


def plan_facts(sidecar: EngineSidecar) -> PlanFacts:
    """What a session needs of engine.json."""

    def tensors(entries: list[TensorEntry]) -> dict[str, TensorFacts]:
        return {entry.name: TensorFacts(entry.dtype, tuple(entry.shape)) for entry in entries}

    def capability(dotted: str) -> tuple[int, int]:
        major, _, minor = dotted.partition(".")
        return int(major), int(minor)

    return PlanFacts(
        flavour=sidecar.flavour,
        version=sidecar.version,
        compute_capabilities=tuple(capability(each) for each in sidecar.compute_capabilities),
        inputs=tensors(sidecar.inputs),
        outputs=tensors(sidecar.outputs),
        aliases=sidecar.aliases,
        profiles={
            profile.name: {name: (size.min, size.max) for name, size in profile.dimensions.items()}
            for profile in sidecar.profiles
        },
    )
