"""Opens the Session for a target of the artifact. A new kind of session is opened here and named in
`machine.SERVED_TARGETS`."""

from __future__ import annotations

from pathlib import Path

from hermes_deploy.errors import ServeError
from hermes_deploy.machine import SERVED_TARGETS
from hermes_deploy.repository.engine_config import EngineConfig
from hermes_deploy.runtime.session import Session


def open_session(config: EngineConfig, target: str, folder: Path, *, slots: int, max_context: int) -> Session:
    """The engine of `target`; its files lie below `folder` (hermes_engine/1).

    `slots` and `max_context` may be lower than what was built, never higher: ServeError.
    """
    for name, asked, built in (("slots", slots, config.max_slots), ("context", max_context, config.max_context)):
        if not 1 <= asked <= built:
            raise ServeError(f"max_{name} is {asked}; this artifact was built for 1 to {built}")
    entry = config.target(target)
    if target not in SERVED_TARGETS:
        raise ServeError(f"target {target!r} is built, but this version serves only: {', '.join(SERVED_TARGETS)}")
    from hermes_deploy.runtime.ort_cpu import OrtCpuSession

    return OrtCpuSession(folder / entry.model, slots=slots, max_context=max_context)
