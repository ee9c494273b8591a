"""The last stage: engine files and facts become a Triton repository with its manifest."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hermes_deploy import __version__
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import BuildError
from hermes_deploy.pipeline.variants import Variant
from hermes_deploy.protocol.tensors import ENGINE
from hermes_deploy.recipes import Recipe
from hermes_deploy.repository.assemble import assemble, version_folder
from hermes_deploy.repository.engine_config import EngineConfig, EngineTarget, sampling_defaults
from hermes_deploy.repository.manifest import (
    GateEntry,
    Manifest,
    ModelEntry,
    TargetEntry,
    hash_file,
    list_files,
    write_manifest,
)
from hermes_deploy.verification import GateResult

GATE_REPORT = "gate.json"


@dataclass(frozen=True)
class Built:
    """What one variant came to. `files`: by target, paths below hermes_engine/1; `model`: the one that is opened."""

    variant: Variant
    model: str
    block_size: int | None
    gate: GateResult
    tensors_sha256: str
    files: dict[str, tuple[str, ...]]


def package(folder: Path, checkpoint: Checkpoint, recipe: Recipe, built: list[Built]) -> Manifest:
    """Completes the artifact in `folder`, manifest last. Raises BuildError when a gate ran other tensors."""
    for each in built:
        if each.tensors_sha256 != each.gate.tensors_sha256:
            raise BuildError(
                f"the gate of {each.variant.name} ran other tensors than its engine holds "
                f"({each.gate.tensors_sha256[:12]} and {each.tensors_sha256[:12]}); nothing is published"
            )
    engine = version_folder(folder, ENGINE)
    targets = tuple(_engine_target(each, name, recipe) for each in built for name in each.files)
    config = EngineConfig(
        model=checkpoint.name,
        family=checkpoint.family,
        targets=targets,
        max_context=recipe.max_context,
        max_slots=recipe.max_slots,
        vocab_size=checkpoint.config.vocab_size,
        stop_ids=checkpoint.tokenizer.stop_ids,
        sampling=sampling_defaults(checkpoint.generation, checkpoint.family),
    )
    assemble(
        folder,
        config,
        checkpoint.tokenizer,
        {name: engine / name for target in targets for name in target.files},
        license_text=checkpoint.license_text or _no_license(checkpoint),
        citation=checkpoint.citation or f"{checkpoint.name}, from {checkpoint.source}. It carries no citation.\n",
    )
    entries = [_target_entry(each, name) for each in built for name in each.files]
    gates = {entry.name: entry.gate.model_dump() for entry in entries}
    (folder / GATE_REPORT).write_text(json.dumps(gates, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    manifest = Manifest(
        model=ModelEntry(
            name=checkpoint.name,
            source=checkpoint.source,
            revision=checkpoint.revision,
            sha256=checkpoint.sha256,
            family=checkpoint.family,
            architecture=checkpoint.config.architecture,
            parameters=sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()),
            license_id=checkpoint.license_id,
            weights_note=checkpoint.weights_note,
        ),
        recipe=recipe.model_dump(),
        max_context=recipe.max_context,
        max_slots=recipe.max_slots,
        targets=entries,
        versions=_versions(built),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        files={name: hash_file(folder / name) for name in list_files(folder)},
    )
    write_manifest(folder, manifest)
    return manifest


def _no_license(checkpoint: Checkpoint) -> str:
    return (
        f"{checkpoint.name}, from {checkpoint.source}, carries no licence text.\n"
        f"The licence that it names: {checkpoint.license_id}. Find out what it allows before you serve it to others.\n"
    )


def _engine_target(each: Built, name: str, recipe: Recipe) -> EngineTarget:
    model = next(file for file in each.files[name] if file.endswith(f"/{each.model}"))
    engine = next(target.engine for target in each.variant.targets if target.name == name)
    return EngineTarget(name=name, engine=engine, precision=recipe.linear, model=model, files=each.files[name])


def _target_entry(each: Built, name: str) -> TargetEntry:
    target = next(target for target in each.variant.targets if target.name == name)
    return TargetEntry(
        name=name,
        engine=target.engine,
        precision=each.gate.precision,
        block_size=each.block_size,
        engine_files=[f"{ENGINE}/1/{file}" for file in each.files[name]],
        tensors_sha256=each.tensors_sha256,
        gated_tensors_sha256=each.gate.tensors_sha256,
        gate=GateEntry(
            passed=each.gate.passed,
            reference=each.gate.reference,
            measures=asdict(each.gate.measures),
            thresholds=each.gate.thresholds,
        ),
    )


def _versions(built: list[Built]) -> dict[str, str]:
    packages = ["numpy", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "tokenizers"]
    if any(not each.variant.served for each in built):
        packages += ["tensorrt", "tensorrt-rtx"]
    found = {"hermes-deploy": __version__}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
