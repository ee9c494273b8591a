"""`build_artifact`: the stages of a build in their order, into a staging folder, published by rename.

Takes a BuildRequest, gives a BuildReport and events on the way. Everything that can be refused is
refused before any work; a build that fails, at any stage, leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.engines import PLAN, Availability, EngineGroup, build_engine, check_available, serving_profiles
from hermes_deploy.errors import BuildError, UsageError
from hermes_deploy.pipeline.events import StageEvent, Tell
from hermes_deploy.pipeline.package import Built, package
from hermes_deploy.pipeline.request import BuildReport, BuildRequest
from hermes_deploy.pipeline.staging import Staging, check_output, staged
from hermes_deploy.pipeline.variants import Variant, check_variants, plan_variants, save_variant
from hermes_deploy.protocol.tensors import ENGINE
from hermes_deploy.quantization import ActivationRanges, calibrate, calibration_chats, encode_chats
from hermes_deploy.recipes import Recipe
from hermes_deploy.repository.assemble import version_folder
from hermes_deploy.repository.manifest import TargetEntry
from hermes_deploy.verification import GateResult, Reference, prepare_reference, run_gate, tensors_sha256

OnEvent = Callable[[StageEvent], None]

PREFILL_CHUNK = 512
"""Most tokens that one prefill call of a TensorRT engine takes; the sidecar carries it as the profile."""

WORK = ".work"
"""Folder in the staging folder for what the artifact does not carry; removed before it is sealed."""


@dataclass
class Stages:
    """Times the stages and tells about them."""

    on_event: OnEvent
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[Tell]:
        began = time.perf_counter()
        self.on_event(StageEvent(name, "begin", detail))
        yield lambda how_far: self.on_event(StageEvent(name, "progress", how_far))
        self.seconds[name] = time.perf_counter() - began
        self.on_event(StageEvent(name, "end", detail, self.seconds[name]))


def build_artifact(request: BuildRequest, on_event: OnEvent = lambda _: None) -> BuildReport:
    """Builds and publishes the artifact. Raises a HermesDeployError; then nothing is published."""
    recipe, targets = request.resolve()
    check_output(request.output)
    engines = check_available(targets, recipe)
    stages = Stages(on_event)
    with _full_disk(request.output):
        with stages.stage("checkpoint", request.model):
            checkpoint = open_checkpoint(request.model, revision=request.revision)
            _check_context(recipe, checkpoint)
            variants = plan_variants(targets)
            check_variants(variants, recipe, checkpoint)
        with staged(request.output) as staging:
            return _build(recipe, checkpoint, variants, engines, stages, staging)


def _build(
    recipe: Recipe,
    checkpoint: Checkpoint,
    variants: tuple[Variant, ...],
    engines: Availability,
    stages: Stages,
    staging: Staging,
) -> BuildReport:
    work = staging.folder / WORK
    work.mkdir()
    tokenizer = ChatTokenizer(checkpoint.tokenizer)
    ranges = None
    if recipe.calibration_chats:
        with stages.stage("calibrate", f"{recipe.calibration_chats} chats"):
            ranges = _calibrate(recipe, checkpoint, tokenizer)
    with stages.stage("reference", checkpoint.weights_note or "the checkpoint's own weights"):
        reference = prepare_reference(checkpoint, tokenizer)
    built = []
    for variant in variants:
        folder = version_folder(staging.folder, ENGINE) / variant.name if variant.served else work / variant.name
        built.append(_build_variant(variant, folder, recipe, checkpoint, ranges, reference, engines, stages, staging))
    with stages.stage("package"):
        shutil.rmtree(work)
        manifest = package(staging.folder, checkpoint, recipe, built)
        staging.publish()
    return BuildReport(
        model=checkpoint.name,
        recipe=recipe.name,
        output=staging.output,
        size=sum(entry.size for entry in manifest.files.values()),
        gates=[_gate_line(entry) for entry in manifest.targets],
        measures={entry.name: entry.gate.measures for entry in manifest.targets},
        stages=stages.seconds,
    )


def _gate_line(entry: TargetEntry) -> str:
    found = entry.gate.measures
    return (
        f"gate {entry.name}: {entry.precision}, KL {found['kl']:.3g}, top-1 {found['top1']:.3f}, "
        f"perplexity x{found['perplexity_ratio']:.4f}, worst tensor {found['tensor_error']:.3g} "
        f"({found['positions']:.0f} positions)"
    )


def _build_variant(
    variant: Variant,
    folder: Path,
    recipe: Recipe,
    checkpoint: Checkpoint,
    ranges: ActivationRanges | None,
    reference: Reference,
    engines: Availability,
    stages: Stages,
    staging: Staging,
) -> Built:
    names = ", ".join(target.name for target in variant.targets)
    with stages.stage(f"graph {variant.name}", names) as tell:
        graph, block_size = save_variant(variant, folder, recipe, checkpoint, ranges, tell)
    with stages.stage(f"gate {variant.name}", names):
        gate: GateResult = run_gate(reference, graph, variant.targets[0], recipe)
    files: dict[str, tuple[str, ...]] = {}
    if variant.served:
        owned = tuple(sorted(f"{variant.name}/{path.name}" for path in folder.iterdir()))
        files = {target.name: owned for target in variant.targets}
    else:
        for group in engines.groups:
            files |= _build_engine(group, graph, recipe, stages, version_folder(staging.folder, ENGINE))
    # read again now: this is what is shipped, or what TensorRT read, whatever the gate saw
    tensors = tensors_sha256(graph)
    return Built(variant, graph.name if variant.served else PLAN, block_size, gate, tensors, files)


def _build_engine(
    group: EngineGroup, graph: Path, recipe: Recipe, stages: Stages, into: Path
) -> dict[str, tuple[str, ...]]:
    name = "-".join(["tensorrt", *(target.name for target in group.targets)])
    with stages.stage(f"engine {'+'.join(t.name for t in group.targets)}", f"{group.flavour} {group.version}") as tell:
        engine = build_engine(
            graph,
            group.targets,
            into / name,
            recipe=recipe,
            profiles=serving_profiles(min(PREFILL_CHUNK, recipe.max_context), recipe.max_slots),
            progress=lambda at: tell(f"{at.phase}: {at.step} of {at.steps}"),
        )
    files = tuple(f"{name}/{path.name}" for path in (engine.plan, engine.sidecar_path))
    return {target.name: files for target in group.targets}


def _calibrate(recipe: Recipe, checkpoint: Checkpoint, tokenizer: ChatTokenizer) -> ActivationRanges:
    chats = calibration_chats(recipe.calibration_chats)
    return calibrate(checkpoint.config, checkpoint.tensors, encode_chats(tokenizer, chats))


def _check_context(recipe: Recipe, checkpoint: Checkpoint) -> None:
    trained = checkpoint.config.max_position
    if recipe.max_context > trained:
        raise UsageError(
            f"a context of {recipe.max_context:,} tokens was asked for; {checkpoint.name} was trained for "
            f"{trained:,}. Use --max-context {trained} or less."
        )


@contextlib.contextmanager
def _full_disk(output: Path) -> Iterator[None]:
    """Turns a full disk, whoever met it, into one message. The staging folder is gone by then."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise BuildError(
            f"the disk became full while building {output} ({error.strerror}"
            f"{': ' + str(error.filename) if error.filename else ''}). Nothing was published and what was written "
            "is removed. Free some space, or name another --output."
        ) from None
