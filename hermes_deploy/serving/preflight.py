"""Everything that can be refused before a process is started: is it whole, may it, can it run here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hermes_deploy.errors import ArtifactError, ServeError, UsageError
from hermes_deploy.machine import serveable
from hermes_deploy.repository.manifest import Manifest, read_manifest, verify_files

_SHOWN = 5


@dataclass(frozen=True)
class Plan:
    """What will be served: which engine, and within which limits (tokens, chats)."""

    artifact: Path
    model: str
    target: str
    max_context: int
    max_slots: int


def check(artifact: Path, *, max_context: int | None = None, max_slots: int | None = None) -> Plan:
    """Raises ArtifactError for bytes that are not as built, UsageError for limits, ServeError for this machine."""
    artifact = artifact.resolve()
    manifest = read_manifest(artifact)
    problems = verify_files(artifact, manifest)
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ArtifactError(f"{artifact} is not as it was built, so it is not served:{shown}{more}\nBuild it again.")
    return Plan(
        artifact=artifact,
        model=manifest.model.name,
        target=_choose_target(manifest),
        max_context=_lowered("max-context", max_context, manifest.max_context, least=16),
        max_slots=_lowered("max-slots", max_slots, manifest.max_slots, least=1),
    )


def _lowered(flag: str, asked: int | None, built: int, *, least: int) -> int:
    if asked is None:
        return built
    if not min(least, built) <= asked <= built:
        raise UsageError(
            f"--{flag} is {asked}; this artifact was built for {built}, which serving may lower to {min(least, built)} "
            f"but never raise. To get more, build again with --{flag} {asked}."
            if asked > built
            else f"--{flag} is {asked}; allowed is {min(least, built)} to {built}"
        )
    return asked


def _choose_target(manifest: Manifest) -> str:
    reasons = {target.name: serveable(target.name) for target in manifest.targets}
    for name, reason in reasons.items():
        if not reason:
            return name
    listed = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
    raise ServeError(f"this machine can serve none of the targets of this artifact:{listed}")
