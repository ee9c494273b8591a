"""The last stage: engine files and facts become a Triton repository with its papers and its manifest.

Holds no path of this machine and one clock, `created` in the manifest: the same inputs give the same bytes.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from hermes_deploy import __version__
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.engines import SIDECAR, read_sidecar
from hermes_deploy.errors import BuildError, GateError
from hermes_deploy.pipeline.variants import Variant
from hermes_deploy.protocol.tensors import ENGINE
from hermes_deploy.recipes import Recipe
from hermes_deploy.repository.assemble import assemble, version_folder
from hermes_deploy.repository.distributions import Distribution, installed_distributions
from hermes_deploy.repository.engine_config import EngineConfig, EngineTarget, sampling_defaults
from hermes_deploy.repository.manifest import (
    SCHEMA,
    AdapterEntry,
    CalibrationEntry,
    GateEntry,
    Manifest,
    ModelEntry,
    TargetEntry,
    hash_file,
    list_files,
    write_manifest,
)
from hermes_deploy.repository.sbom import SBOM, bill_of_materials
from hermes_deploy.verification import GateResult

GATE_REPORT = "gate.json"
"""All that the gate found, by target; the manifest has its numbers and its verdict."""

TOOLS = (
    "pydantic",
    "typer",
    "rich",
    "pyyaml",
    "protobuf",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "ml-dtypes",
    "safetensors",
    "gguf",
    "tokenizers",
    "jinja2",
    "huggingface-hub",
    "packaging",
)
"""What a build imports; what these require is found from them. A signature is made after the manifest,
so what makes it is not among them: signed or not, the artifact is the same."""


@dataclass(frozen=True)
class Built:
    """What one variant came to. `files`: by target, paths below hermes_engine/1; `model`: the one that is opened."""

    variant: Variant
    model: str
    block_size: int | None
    gate: GateResult
    tensors_sha256: str
    files: dict[str, tuple[str, ...]]


def package(
    folder: Path,
    checkpoint: Checkpoint,
    recipe: Recipe,
    built: list[Built],
    *,
    calibration: CalibrationEntry | None = None,
    degraded: str | None = None,
    created: str | None = None,
) -> Manifest:
    """Completes the artifact in `folder`, manifest last; what lies there already (reports) is named in it.

    `degraded`: the reason to ship although a gate failed; it stands in the manifest only when one did.
    `created`: ISO 8601; None = now. Raises BuildError when a gate ran other tensors than are shipped,
    GateError when one failed and there is no reason.
    """
    _check_gates(built, degraded)
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
        model_card=checkpoint.model_card or _no_card(checkpoint),
    )
    entries = [_target_entry(each, name) for each in built for name in each.files]
    tools = (*TOOLS, *_engine_builders(engine, built))
    distributions = installed_distributions(tools)
    gates = {name: json.loads(each.gate.to_json()) for each in built for name in each.files}
    (folder / GATE_REPORT).write_text(json.dumps(gates, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    model = _model_entry(checkpoint)
    bill = bill_of_materials(
        model, calibration, distributions, tools=tools, builder=__version__, python=platform.python_version()
    )
    (folder / SBOM).write_text(json.dumps(bill, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    manifest = Manifest(
        schema_version=SCHEMA,
        model=model,
        recipe=recipe.model_dump(),
        calibration=calibration,
        max_context=recipe.max_context,
        max_slots=recipe.max_slots,
        targets=entries,
        degraded=None if all(entry.gate.passed for entry in entries) else degraded,
        versions=_versions(distributions),
        machine=platform.machine(),
        created=created or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        files={name: hash_file(folder / name) for name in list_files(folder)},
    )
    write_manifest(folder, manifest)
    return manifest


def _check_gates(built: list[Built], degraded: str | None) -> None:
    for each in built:
        if each.tensors_sha256 != each.gate.tensors_sha256:
            raise BuildError(
                f"the gate of {each.variant.name} ran other tensors than its engine holds "
                f"({each.gate.tensors_sha256[:12]} and {each.tensors_sha256[:12]}); nothing is published"
            )
        if not each.gate.passed and not (degraded or "").strip():
            raise GateError(
                f"the gate of {each.variant.name} failed, so nothing is published. "
                "To ship it all the same, say why: --accept-degraded REASON"
            )


def _model_entry(checkpoint: Checkpoint) -> ModelEntry:
    return ModelEntry(
        name=checkpoint.name,
        source=checkpoint.source,
        revision=checkpoint.revision,
        sha256=checkpoint.sha256,
        family=checkpoint.family,
        architecture=checkpoint.config.architecture,
        parameters=sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()),
        license_id=checkpoint.license_id,
        weights_note=checkpoint.weights_note,
        adapter=AdapterEntry.model_validate(asdict(checkpoint.adapter)) if checkpoint.adapter else None,
    )


def _no_card(checkpoint: Checkpoint) -> str:
    return (
        f"# {checkpoint.name}\n\nFrom {checkpoint.source}. The checkpoint carries no model card: what it was trained "
        "for, and where it fails, has to be asked of whoever published it.\n"
    )


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
            measures=_measures(each.gate),
            thresholds=each.gate.thresholds,
            problems=list(each.gate.problems),
        ),
    )


def _measures(gate: GateResult) -> dict[str, float]:
    """Every number of the gate by its name; the ends of an interval as NAME_low and NAME_high."""
    found: dict[str, float] = asdict(gate.measures)
    for name, (low, high) in gate.intervals.items():
        found |= {f"{name}_low": low, f"{name}_high": high}
    strange = [name for name, value in found.items() if not math.isfinite(value)]
    if strange:
        raise GateError(
            f"the gate measured {', '.join(strange)} that is not a finite number: what gives it is broken, not only "
            "degraded, and is not published. Try a recipe with more precision."
        )
    return found


def _engine_builders(engine: Path, built: list[Built]) -> list[str]:
    """The TensorRT packages that made the engines: their sidecars say which."""
    sidecars = {file for each in built for files in each.files.values() for file in files if file.endswith(SIDECAR)}
    flavours = {read_sidecar((engine / file).parent, verify=False).flavour for file in sidecars}
    return sorted(flavour.replace("_", "-") for flavour in flavours)


def _versions(distributions: tuple[Distribution, ...]) -> dict[str, str]:
    return {
        "hermes-deploy": __version__,
        "python": platform.python_version(),
        **{each.name: each.version for each in distributions},
    }
