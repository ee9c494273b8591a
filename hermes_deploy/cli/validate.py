"""`hermes-deploy validate`: is every byte as built, and would this machine run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hermes_deploy.repository.manifest import Manifest


def validate(
    artifact: Annotated[Path, typer.Argument(help="Folder that build wrote.")],
    require_signature: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="The public key (PEM) that must have signed it. Default: not checked."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Checks every file against the manifest, and whether this machine can serve the artifact.

    Exit code 0: all as built, and it would run here. 6: a file differs (each is named), the required
    signature is not there or another's, another version of hermes-deploy built it, or nothing in the
    artifact runs on this machine.
    """
    from hermes_deploy.errors import ArtifactError
    from hermes_deploy.machine import serveable
    from hermes_deploy.repository.manifest import read_manifest, verify_files
    from hermes_deploy.repository.signature import is_signed, verify_signature
    from hermes_deploy.repository.version import refuse_another_version, version_differences

    manifest = read_manifest(artifact)
    if require_signature is not None:
        verify_signature(artifact, require_signature)
        signature = f"made by the owner of {require_signature}"
    else:
        signature = "there, not checked (--require-signature KEY checks it)" if is_signed(artifact) else "none"
    problems = verify_files(artifact, manifest)
    verdicts = {entry.name: serveable(entry.name) for entry in manifest.targets}
    another: list[str] = []
    if not problems:
        another = version_differences(artifact)
        verdicts |= _engine_verdicts(artifact, manifest)
    runs_here = [name for name, reason in verdicts.items() if not reason]
    if as_json:
        print(
            json.dumps(
                {
                    "artifact": str(artifact),
                    "files": len(manifest.files),
                    "signature": signature,
                    "degraded": manifest.degraded,
                    "problems": problems,
                    "targets": {name: reason or "runs here" for name, reason in verdicts.items()},
                    "another_version": another,
                    "valid": not problems and not another and bool(runs_here),
                },
                ensure_ascii=False,
            )
        )
        if problems or another or not runs_here:
            raise typer.Exit(ArtifactError.exit_code)
        return
    if problems:
        raise ArtifactError(
            f"{artifact} is not as it was built ({len(problems)} of {len(manifest.files)} files):\n  "
            + "\n  ".join(problems)
            + "\nCopy it again from where it was built, or build it again."
        )
    refuse_another_version(artifact, manifest)
    print(f"{len(manifest.files)} files are as the manifest says\n  signature: {signature}")
    if manifest.degraded is not None:
        print(f"  DEGRADED: its gate failed and it was shipped all the same: {manifest.degraded}")
    for name, reason in verdicts.items():
        print(f"  {name}: {reason or 'runs here'}")
    if not runs_here:
        raise ArtifactError(
            f"{artifact} is intact, but nothing in it runs on this machine (see above). "
            "Build it again with --target cpu, or serve it on a machine that it was built for."
        )


def _engine_verdicts(artifact: Path, manifest: Manifest) -> dict[str, str]:
    """What is in the way of each TensorRT engine, by target. ArtifactError: a plan that is not its sidecar's."""
    from hermes_deploy.engines.sidecar import PLAN, read_sidecar, version_problem
    from hermes_deploy.errors import ArtifactError
    from hermes_deploy.machine import serveable

    verdicts = {}
    for entry in manifest.targets:
        reasons = [serveable(entry.name)]
        for name in (name for name in entry.engine_files if name.endswith(f"/{PLAN}")):
            plan = artifact / name
            # the bytes have just been compared with the manifest: gigabytes are not read a second time
            sidecar = read_sidecar(plan.parent, verify=False)
            if sidecar.plan.sha256 != manifest.files[name].sha256:
                raise ArtifactError(f"{plan} is not the engine that engine.json was written for. Build it again.")
            reasons.append(version_problem(sidecar))
        verdicts[entry.name] = "; ".join(reason for reason in reasons if reason)
    return verdicts
