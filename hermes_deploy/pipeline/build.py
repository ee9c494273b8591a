"""`build_artifact`: the stages of a build in their order, from the cache or anew, published by rename.

Takes a BuildRequest, gives a BuildReport and events on the way. Everything that can be refused is
refused before any work; a build that fails, at any stage, publishes nothing, and the stages that it
finished stay in the cache.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.engines import PLAN, check_available
from hermes_deploy.errors import BuildError, UsageError
from hermes_deploy.pipeline import stages
from hermes_deploy.pipeline.cache import Entry, StageCache, stages_folder
from hermes_deploy.pipeline.copying import copy_file
from hermes_deploy.pipeline.events import OnEvent, Tell
from hermes_deploy.pipeline.keys import StageKey
from hermes_deploy.pipeline.package import Built, package
from hermes_deploy.pipeline.plan import BuildPlan, PlannedVariant, plan_build
from hermes_deploy.pipeline.request import BuildReport, BuildRequest
from hermes_deploy.pipeline.results import read_gate, read_reference
from hermes_deploy.pipeline.stage_clock import RunningStage, StageClock
from hermes_deploy.pipeline.staging import Staging, check_output, staged
from hermes_deploy.pipeline.variants import MODEL, check_variants, plan_variants
from hermes_deploy.protocol.tensors import ENGINE
from hermes_deploy.quantization import calibration_chats, encode_chats
from hermes_deploy.recipes import Recipe
from hermes_deploy.repository.assemble import version_folder
from hermes_deploy.repository.manifest import Manifest, TargetEntry
from hermes_deploy.verification import Reference, tensors_sha256
from hermes_deploy.verification.reference import heldout_sequences

WORK = ".work"
"""Folder in the staging folder for what the artifact does not carry; removed before it is sealed."""


def build_artifact(request: BuildRequest, on_event: OnEvent = lambda _: None) -> BuildReport:
    """Builds and publishes the artifact. Raises a HermesDeployError; then nothing is published."""
    recipe, targets = request.resolve()
    check_output(request.output)
    engines = check_available(targets, recipe)
    clock = StageClock(on_event)
    with _full_disk(request.output):
        with clock.stage("checkpoint", request.model):
            checkpoint = open_checkpoint(request.model, revision=request.revision)
            _check_context(recipe, checkpoint)
            variants = plan_variants(targets)
            block_sizes = check_variants(variants, recipe, checkpoint)
            tokenizer = ChatTokenizer(checkpoint.tokenizer)
            calibration: list[list[int]] = []
            if recipe.calibration_chats:
                calibration = encode_chats(tokenizer, calibration_chats(recipe.calibration_chats))
            plan = plan_build(recipe, checkpoint, variants, engines, calibration, heldout_sequences(tokenizer))
        with staged(request.output) as staging:
            work = staging.folder / WORK
            work.mkdir()
            with StageCache(stages_folder() if request.cache else work) as cache:
                build = _Build(recipe, checkpoint, tokenizer, calibration, block_sizes, plan, clock, cache, staging)
                return build.run()


@dataclass(frozen=True)
class _Build:
    """One build from its plan to the published artifact."""

    recipe: Recipe
    checkpoint: Checkpoint
    tokenizer: ChatTokenizer
    calibration: list[list[int]]
    block_sizes: dict[str, int | None]
    plan: BuildPlan
    clock: StageClock
    cache: StageCache
    staging: Staging

    def run(self) -> BuildReport:
        entry = self._stage(
            self.plan.reference,
            self.checkpoint.weights_note or "the checkpoint's own weights",
            lambda into, _: stages.make_reference(self.checkpoint, self.tokenizer, into),
        )
        reference = read_reference(entry.folder / stages.REFERENCE, self.checkpoint)
        shipped: dict[str, Entry] = {}
        built = [self._variant(planned, reference, shipped) for planned in self.plan.variants]
        with self.clock.stage("package"):
            self._copy(shipped)
            shutil.rmtree(self.staging.folder / WORK)
            manifest = package(self.staging.folder, self.checkpoint, self.recipe, built)
            _check_copies(manifest, shipped)
            self.staging.publish()
        return BuildReport(
            model=self.checkpoint.name,
            recipe=self.recipe.name,
            output=self.staging.output,
            size=sum(entry.size for entry in manifest.files.values()),
            gates=[_gate_line(entry) for entry in manifest.targets],
            measures={entry.name: entry.gate.measures for entry in manifest.targets},
            stages=self.clock.seconds,
            reused=self.clock.reused,
        )

    def _variant(self, planned: PlannedVariant, reference: Reference, shipped: dict[str, Entry]) -> Built:
        """Runs the stages of one variant; adds to `shipped` what goes into the artifact, by folder."""
        variant, recipe = planned.variant, self.recipe
        names = ", ".join(target.name for target in variant.targets)
        preparation = None
        if planned.calibrate is not None:
            preparation = self._stage(
                planned.calibrate,
                f"{len(self.calibration)} chats",
                lambda into, _: stages.make_preparation(self.checkpoint, self.calibration, into),
            ).folder
        graph = self._stage(
            planned.graph,
            names,
            lambda into, tell: stages.make_graph(variant, recipe, self.checkpoint, preparation, into, tell),
        )
        gate = self._stage(
            planned.gate, names, lambda into, _: stages.make_gate(variant, recipe, reference, graph.folder, into)
        )
        files: dict[str, tuple[str, ...]] = {}
        if variant.served:
            files = dict.fromkeys((t.name for t in variant.targets), _ship(shipped, variant.name, graph))
        for group, key in planned.engines:
            make = functools.partial(stages.make_engine, group, recipe, graph.folder)
            engine = self._stage(key, f"{group.flavour} {group.version}", make)
            name = "-".join(["tensorrt", *(target.name for target in group.targets)])
            files |= dict.fromkeys((t.name for t in group.targets), _ship(shipped, name, engine))
        return Built(
            variant,
            MODEL if variant.served else PLAN,
            self.block_sizes[variant.name],
            read_gate(gate.folder / stages.GATE),
            # read again now: this is what is shipped, or what TensorRT read, whatever the gate saw
            tensors_sha256(graph.folder / MODEL),
            files,
        )

    def _stage(self, key: StageKey, detail: str, make: Callable[[Path, Tell], None]) -> Entry:
        with self.clock.stage(key.name, detail) as running:
            entry = self._obtain(key, make, running)
            running.reused = entry.reused
        return entry

    def _obtain(self, key: StageKey, make: Callable[[Path, Tell], None], running: RunningStage) -> Entry:
        return self.cache.obtain(key, lambda into: make(into, running.tell), running.note)

    def _copy(self, shipped: dict[str, Entry]) -> None:
        engine = version_folder(self.staging.folder, ENGINE)
        for name, entry in shipped.items():
            for file in entry.about.files:
                copy_file(entry.folder / file, engine / name / file)


def _ship(shipped: dict[str, Entry], name: str, entry: Entry) -> tuple[str, ...]:
    shipped[name] = entry
    return tuple(f"{name}/{file}" for file in sorted(entry.about.files))


def _check_copies(manifest: Manifest, shipped: dict[str, Entry]) -> None:
    """Raises BuildError when a file of the artifact is not what its stage made, as hashed on the way there."""
    for name, entry in shipped.items():
        for file, made in entry.about.files.items():
            found = manifest.files[f"{ENGINE}/1/{name}/{file}"]
            if found != made:
                raise BuildError(
                    f"{name}/{file} is not what stage {entry.about.name} made ({found.sha256[:12]} and "
                    f"{made.sha256[:12]}): {entry.folder} was changed during the build. Nothing is published; "
                    "build again."
                )


def _gate_line(entry: TargetEntry) -> str:
    found = entry.gate.measures
    return (
        f"gate {entry.name}: {entry.precision}, KL {found['kl']:.3g}, top-1 {found['top1']:.3f}, "
        f"perplexity x{found['perplexity_ratio']:.4f}, worst tensor {found['tensor_error']:.3g} "
        f"({found['positions']:.0f} positions)"
    )


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
            "is removed; finished stages stay in the cache. Free some space (hermes-deploy cache prune), or name "
            "another --output or HERMES_DEPLOY_STAGES."
        ) from None
