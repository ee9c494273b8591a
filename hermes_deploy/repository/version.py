"""Whether an artifact is one that this version of hermes-deploy would have written.

The models' code is that of the installed package; what they may be asked stands in the artifact, in config.pbtxt and in
the model.py that calls the package. Where the two do not fit each other the server starts, says that it is ready, and
fails at its callers. So they are compared before.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from hermes_deploy.checkpoints.source import DEMO
from hermes_deploy.errors import ArtifactError
from hermes_deploy.protocol import model_config_pb2 as pb
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE
from hermes_deploy.repository.assemble import shim, version_folder
from hermes_deploy.repository.engine_config import read_engine_config
from hermes_deploy.repository.manifest import Manifest
from hermes_deploy.repository.triton_config import CONFIG, model_configs

_SHOWN = 5


def refuse_another_version(artifact: Path, manifest: Manifest) -> None:
    """Raises ArtifactError that says what differs and what to run. The files are as the manifest says."""
    found = version_differences(artifact)
    if found:
        shown = "".join(f"\n  {line}" for line in found[:_SHOWN])
        more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ArtifactError(
            f"{artifact} is intact, but was built by another version of hermes-deploy, so it is not served by this one:"
            f"{shown}{more}\n{rebuild(artifact, manifest)}"
        )


def rebuild(artifact: Path, manifest: Manifest) -> str:
    """What to run to get the same artifact from this version, as well as the manifest knows."""
    kind, _, source = manifest.model.source.partition(" ")
    model = {"PyPI": DEMO, "hub": source}.get(kind, f"FOLDER/{source}")
    command = ["hermes-deploy", "build", model, "--recipe", str(manifest.recipe.get("name"))]
    if kind == "hub" and manifest.model.revision:
        command += ["--revision", manifest.model.revision]
    for target in manifest.targets:
        command += ["--target", target.name]
    command += ["--max-context", str(manifest.max_context), "--max-slots", str(manifest.max_slots)]
    if manifest.model.adapter is not None:
        command += ["--adapter", f"FOLDER/{manifest.model.adapter.name}"]
    if manifest.calibration is not None and manifest.calibration.source != "packaged":
        command += ["--calibration", f"FOLDER/{manifest.calibration.source}"]
    if manifest.degraded is not None:
        command += ["--accept-degraded", manifest.degraded]
    command += ["--output", f"{artifact}-new"]
    return (
        "Build it again as it was built, into a new folder; stages that did not change come from the cache:\n"
        f"  {shlex.join(command)}"
    )


def version_differences(artifact: Path) -> list[str]:
    """One line for each thing in the models' config.pbtxt and model.py that this version would write otherwise.

    Raises ArtifactError for files that cannot be read.
    """
    try:
        config = read_engine_config(version_folder(artifact, ENGINE))
    except ArtifactError as error:
        return [str(error)]
    expected = model_configs(config)
    return [line for name, config in expected.items() for line in _of_model(artifact, name, config)]


def _of_model(artifact: Path, name: str, expected: Any) -> Iterator[str]:
    path = artifact / name / CONFIG
    found = pb.ModelConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), found)
    except (OSError, ValueError, text_format.ParseError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Build the artifact again.") from None
    if found != expected:
        told = [*_tensors("input", found.input, expected.input), *_tensors("output", found.output, expected.output)]
        yield from (f"{name}/{CONFIG}: {line}" for line in told or ["other settings than this version writes"])
    if name != ENSEMBLE:
        yield from _of_shim(version_folder(artifact, name) / "model.py", name)


def _tensors(kind: str, found: Any, expected: Any) -> Iterator[str]:
    here, wanted = {each.name: each for each in found}, {each.name: each for each in expected}
    yield from (f"{kind} {name} is missing" for name in wanted if name not in here)
    yield from (f"{kind} {name} is unknown to this version" for name in here if name not in wanted)
    yield from (f"{kind} {name} is of another type" for name in wanted if name in here and here[name] != wanted[name])


def _of_shim(path: Path, name: str) -> Iterator[str]:
    """What it does beside what this version's does is the builder's own, and covered by the manifest."""
    try:
        here = set(path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. Build the artifact again.") from None
    missing = [line.strip() for line in shim(name).decode().splitlines() if line not in here]
    if missing:
        yield f"{name}/1/model.py: lacks the line: {missing[0]}"
