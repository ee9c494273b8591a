"""Everything that can be refused before a process is started: is it whole, may it, can it run here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hermes_deploy.errors import ArtifactError, ServeError, UsageError
from hermes_deploy.machine import serveable
from hermes_deploy.repository.manifest import (
    SIGNATURE,
    FileEntry,
    Manifest,
    TargetEntry,
    read_manifest,
    verify_files,
)
from hermes_deploy.repository.signature import is_signed, verify_signature
from hermes_deploy.repository.version import refuse_another_version
from hermes_deploy.serving.loaded_files import Identity, identities

_SHOWN = 5


@dataclass(frozen=True)
class Plan:
    """What will be served: which engine, and within which limits (tokens, chats).

    `warnings`: what whoever starts it has to know of this artifact, at every start. `before`: the artifact's files as
    they were when they were about to be hashed; `engine_files`: those of the chosen target, by their path in it.
    """

    artifact: Path
    model: str
    target: str
    max_context: int
    max_slots: int
    before: Mapping[str, Identity]
    engine_files: Mapping[str, FileEntry]
    warnings: tuple[str, ...] = ()


def check(
    artifact: Path,
    *,
    max_context: int | None = None,
    max_slots: int | None = None,
    require_signature: Path | None = None,
) -> Plan:
    """Raises ArtifactError for bytes that are not as built or signed, UsageError for limits or a key that is none,
    ServeError for this machine. `require_signature`: the public key that must have signed it."""
    artifact = artifact.resolve()
    manifest = read_manifest(artifact)
    if require_signature is not None:
        verify_signature(artifact, require_signature)
    before = identities(artifact)
    problems = verify_files(artifact, manifest)
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ArtifactError(f"{artifact} is not as it was built, so it is not served:{shown}{more}\nBuild it again.")
    refuse_another_version(artifact, manifest)
    target = _choose_target(manifest)
    return Plan(
        artifact=artifact,
        model=manifest.model.name,
        target=target.name,
        max_context=_lowered("max-context", max_context, manifest.max_context, least=16),
        max_slots=_lowered("max-slots", max_slots, manifest.max_slots, least=1),
        before=before,
        engine_files={name: manifest.files[name] for name in target.engine_files},
        warnings=tuple(_warnings(artifact, manifest, signature_checked=require_signature is not None)),
    )


def _warnings(artifact: Path, manifest: Manifest, *, signature_checked: bool) -> Iterator[str]:
    if manifest.degraded is not None:
        yield f"DEGRADED: {manifest.model.name} failed its gate and was shipped all the same: {manifest.degraded}"
        for target in manifest.targets:
            for problem in target.gate.problems:
                yield f"DEGRADED: {target.name}: {problem}"
    if is_signed(artifact) and not signature_checked:
        yield f"{artifact / SIGNATURE} is there and was not checked; --require-signature KEY checks it"


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


def _choose_target(manifest: Manifest) -> TargetEntry:
    reasons = {target.name: serveable(target.name) for target in manifest.targets}
    for target in manifest.targets:
        if not reasons[target.name]:
            return target
    listed = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
    raise ServeError(f"this machine can serve none of the targets of this artifact:{listed}")
