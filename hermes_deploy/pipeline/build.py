"""`build_artifact`: the stages of a build in their order, from the cache or anew, published by rename.

Takes a BuildRequest, gives a BuildReport and events on the way. Everything that can be refused is
refused before any work; a build that fails, at any stage, publishes nothing, and the stages that it
finished stay in the cache. `plan_artifact` says what a build would do and does nothing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hermes_deploy.engines import PLAN
from hermes_deploy.errors import BuildError, GateError
from hermes_deploy.pipeline import stages
from hermes_deploy.pipeline.cache import Entry, StageCache, stages_folder
from hermes_deploy.pipeline.copying import copy_file
from hermes_deploy.pipeline.estimate import refuse
from hermes_deploy.pipeline.events import OnEvent, Tell
from hermes_deploy.pipeline.job import BuildJob, open_job
from hermes_deploy.pipeline.keys import StageKey
from hermes_deploy.pipeline.package import Built, package
from hermes_deploy.pipeline.plan import PlannedVariant
from hermes_deploy.pipeline.request import BuildReport, BuildRequest, PlanReport
from hermes_deploy.pipeline.stage_clock import StageClock
from hermes_deploy.pipeline.staging import Staging, staged
from hermes_deploy.pipeline.variants import MODEL
from hermes_deploy.protocol.tensors import ENGINE
from hermes_deploy.quantization import Preparation
from hermes_deploy.repository.assemble import version_folder
from hermes_deploy.repository.manifest import Manifest, TargetEntry
from hermes_deploy.repository.signature import sign_artifact
from hermes_deploy.verification import GateResult, Reference, read_reference, tensors_sha256
from hermes_deploy.verification.judgement import refusal
from hermes_deploy.verification.report import REPORT, write_report

WORK = ".work"
"""Folder in the staging folder for what the artifact does not carry; removed before it is sealed."""


def plan_artifact(request: BuildRequest, on_event: OnEvent = lambda _: None) -> PlanReport:
    """Which stages would run, and what they need. Raises a HermesDeployError for what would be refused,
    but not for want of room: `problems` says that."""
    return open_job(request, StageClock(on_event)).fit()


def build_artifact(request: BuildRequest, on_event: OnEvent = lambda _: None) -> BuildReport:
    """Builds and publishes the artifact. Raises a HermesDeployError; then nothing is published."""
    clock = StageClock(on_event)
    with _full_disk(request.output):
        job = open_job(request, clock)
        refuse(job.fit().problems)
        with staged(request.output) as staging:
            work = staging.folder / WORK
            work.mkdir()
            with StageCache(stages_folder() if request.cache else work) as cache:
                return _Build(job, clock, cache, staging).run()


@dataclass(frozen=True)
class _Build:
    """One build from its plan to the published artifact. `shipped`: what goes into the artifact, by its
    folder below hermes_engine/1."""

    job: BuildJob
    clock: StageClock
    cache: StageCache
    staging: Staging
    shipped: dict[str, Entry] = field(default_factory=dict)

    def run(self) -> BuildReport:
        job = self.job
        entry = self._stage(
            job.plan.reference,
            job.checkpoint.weights_note or "the checkpoint's own weights",
            functools.partial(stages.make_reference, job.checkpoint, job.tokenizer, job.request.gate_positions),
        )
        reference = read_reference(entry.folder / stages.REFERENCE, job.checkpoint, job.texts)
        built = [self._variant(planned, reference) for planned in job.plan.variants]
        with self.clock.stage("package"):
            manifest = self._package(built)
            self.staging.publish()
        return BuildReport(
            model=job.checkpoint.name,
            recipe=job.recipe.name,
            output=self.staging.output,
            size=sum(entry.size for entry in manifest.files.values()),
            estimate=job.estimate,
            gates=[_gate_line(entry) for entry in manifest.targets],
            measures={entry.name: entry.gate.measures for entry in manifest.targets},
            stages=self.clock.seconds,
            reused=self.clock.reused,
            degraded=manifest.degraded,
        )

    def _variant(self, planned: PlannedVariant, reference: Reference) -> Built:
        variant, job = planned.variant, self.job
        names = ", ".join(target.name for target in variant.targets)
        preparation = None
        if planned.calibrate is not None and job.calibration is not None:
            make = functools.partial(
                stages.make_preparation, variant, job.recipe, job.checkpoint, job.calibration.sequences
            )
            chats = f"{job.calibration.entry.chats} chats, {job.calibration.entry.source}"
            entry = self._stage(planned.calibrate, chats, make)
            preparation = Preparation.load(entry.folder / stages.PREPARATION)
        make = functools.partial(stages.make_graph, variant, job.recipe, job.checkpoint, preparation)
        graph = self._stage(planned.graph, names, make)
        make = functools.partial(
            stages.make_gate, variant, job.recipe, reference, job.tokenizer, preparation, graph.folder
        )
        gate = self._judge(self._stage(planned.gate, names, make))
        files: dict[str, tuple[str, ...]] = {}
        if variant.served:
            files = dict.fromkeys((t.name for t in variant.targets), self._ship(variant.name, graph))
        for group, key in planned.engines:
            make = functools.partial(stages.make_engine, group, job.recipe, preparation, graph.folder)
            engine = self._stage(key, f"{group.flavour} {group.version}", make)
            name = "-".join(["tensorrt", *(target.name for target in group.targets)])
            files |= dict.fromkeys((t.name for t in group.targets), self._ship(name, engine))
        return Built(
            variant,
            MODEL if variant.served else PLAN,
            job.sizes[variant.name].block_size,
            gate,
            # read again now: this is what is shipped, or what TensorRT read, whatever the gate saw
            tensors_sha256(graph.folder / MODEL),
            files,
        )

    def _stage(self, key: StageKey, detail: str, make: Callable[[Path, Tell], None]) -> Entry:
        with self.clock.stage(key.name, detail) as running:
            entry = self.cache.obtain(key, lambda into: make(into, running.tell), running.note)
            running.reused = entry.reused
        return entry

    def _judge(self, entry: Entry) -> GateResult:
        """Raises GateError for answers that are too far from the reference's, unless that was accepted."""
        parameters = sum(math.prod(tensor.shape) for tensor in self.job.checkpoint.tensors.values())
        result = stages.read_gate(entry.folder, self.job.recipe, parameters)
        if not result.passed and self.job.request.accept_degraded is None:
            raise GateError(refusal(result))
        return result

    def _ship(self, name: str, entry: Entry) -> tuple[str, ...]:
        self.shipped[name] = entry
        return tuple(f"{name}/{file}" for file in sorted(entry.about.files))

    def _package(self, built: list[Built]) -> Manifest:
        folder, job = self.staging.folder, self.job
        for name, entry in self.shipped.items():
            for file in entry.about.files:
                copy_file(entry.folder / file, version_folder(folder, ENGINE) / name / file)
        shutil.rmtree(folder / WORK)
        write_report(
            [each.gate for each in built],
            folder / REPORT,
            title=f"{job.checkpoint.name}, {job.recipe.name}",
            facts=job.provenance,
        )
        manifest = package(
            folder,
            job.checkpoint,
            job.recipe,
            built,
            calibration=job.calibration.entry if job.calibration else None,
            degraded=job.request.accept_degraded,
        )
        _check_copies(manifest, self.shipped)
        if job.request.sign_with is not None:
            sign_artifact(folder, job.request.sign_with)
        return manifest


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
