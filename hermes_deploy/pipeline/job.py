"""What a build is going to do, decided before any work: the checkpoint, its texts, the plan, the room it takes.

Everything that can be refused is refused here; no weight is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from hermes_deploy import __version__, quantization
from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints import apply_adapter, open_checkpoint
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.engines import check_available
from hermes_deploy.errors import UsageError
from hermes_deploy.machine import installed
from hermes_deploy.pipeline import free_space
from hermes_deploy.pipeline.cache import StageCache, stages_folder
from hermes_deploy.pipeline.estimate import Estimate, estimate, problems
from hermes_deploy.pipeline.plan import BuildPlan, plan_build
from hermes_deploy.pipeline.request import BuildRequest, PlanReport
from hermes_deploy.pipeline.stage_clock import StageClock
from hermes_deploy.pipeline.staging import check_output
from hermes_deploy.pipeline.variants import VariantSize, measure_variants, plan_variants
from hermes_deploy.quantization import (
    Chat,
    calibration_chats,
    encode_chats,
    read_calibration_file,
)
from hermes_deploy.quantization.calibration import cut_chats
from hermes_deploy.recipes import Recipe
from hermes_deploy.repository.manifest import CalibrationEntry
from hermes_deploy.repository.signature import check_key
from hermes_deploy.targets import Target
from hermes_deploy.verification import Texts, heldout_texts

PACKAGED = "packaged"


@dataclass(frozen=True)
class Calibration:
    """`sequences`: token ids, one chat each. `entry`: what the manifest says of them."""

    sequences: list[list[int]]
    entry: CalibrationEntry


@dataclass(frozen=True)
class BuildJob:
    """`calibration` is None for a recipe that needs none; `sizes` by variant."""

    request: BuildRequest
    recipe: Recipe
    targets: tuple[Target, ...]
    checkpoint: Checkpoint
    tokenizer: ChatTokenizer
    calibration: Calibration | None
    texts: Texts
    sizes: dict[str, VariantSize]
    plan: BuildPlan
    estimate: Estimate

    @property
    def provenance(self) -> dict[str, str]:
        """Where the numbers of the gate come from, for people. No clock and no path of this machine."""
        checkpoint, calibration = self.checkpoint, "none"
        if self.calibration is not None:
            entry = self.calibration.entry
            calibration = f"{entry.chats} chats, {entry.tokens:,} tokens, {entry.source}, sha256 {entry.sha256}"
        packages = ("numpy", "onnxruntime", "onnxruntime-gpu")
        versions = [f"{name} {found}" for name in packages if (found := installed(name))]
        return {
            "source": f"{checkpoint.source}, sha256 {checkpoint.sha256}",
            "adapter": "none" if checkpoint.adapter is None else checkpoint.adapter.name,
            "recipe": f"{self.recipe.name}: {self.recipe.description}",
            "calibration": calibration,
            "held-out texts": f"{sum(map(len, self.texts.sequences)):,} positions, sha256 {self.texts.sha256}",
            "versions": ", ".join([f"hermes-deploy {__version__}", *versions]),
        }

    def fit(self) -> PlanReport:
        """The estimate beside what is free now."""
        memory = free_space.free_memory()
        output = free_space.free_disk(self.request.output.absolute())
        cache = free_space.free_disk(stages_folder().absolute()) if self.request.cache else output
        return PlanReport(
            model=self.checkpoint.name,
            recipe=self.recipe.name,
            targets=[target.name for target in self.targets],
            estimate=self.estimate,
            free_memory=memory.free,
            free_cache=cache.free,
            free_output=output.free,
            problems=problems(self.estimate, memory, cache, output),
        )


def open_job(request: BuildRequest, clock: StageClock) -> BuildJob:
    """Raises a HermesDeployError for whatever can be told to fail without reading a weight."""
    recipe, targets = request.resolve()
    check_output(request.output)
    engines = check_available(targets, recipe)
    if request.sign_with is not None:
        check_key(request.sign_with)
    chats = _chats(request, recipe)
    with clock.stage("checkpoint", request.model):
        checkpoint = open_checkpoint(request.model, revision=request.revision)
        if request.adapter is not None:
            checkpoint = apply_adapter(checkpoint, request.adapter)
        _check_context(recipe, checkpoint)
        variants = plan_variants(targets)
        sizes = measure_variants(variants, recipe, checkpoint)
        tokenizer = ChatTokenizer(checkpoint.tokenizer)
        calibration = None if chats is None else _calibration(chats, tokenizer, request.calibration)
        texts = heldout_texts(tokenizer, request.gate_positions)
        if texts.compared < request.gate_positions:
            raise UsageError(
                f"--gate-positions {request.gate_positions}: the held-out texts have {texts.compared} positions with "
                "this model's tokenizer; ask for that many or fewer"
            )
        plan = plan_build(
            recipe, checkpoint, variants, engines, calibration.sequences if calibration else None, texts.sha256
        )
        tokens = {
            "calibration": calibration.entry.tokens if calibration else 0,
            "heldout": sum(map(len, texts.sequences)),
            "longest": min(recipe.max_context, max(map(len, texts.sequences))),
        }
        reused = _there(plan, request.cache)
    return BuildJob(
        request=request,
        recipe=recipe,
        targets=targets,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        calibration=calibration,
        texts=texts,
        sizes=sizes,
        plan=plan,
        estimate=estimate(plan, checkpoint.config, sizes, tokens, reused, recipe),
    )


def _there(plan: BuildPlan, cached: bool) -> set[str]:
    """Digests of the stages that the cache has."""
    if not cached:
        return set()
    cache = StageCache(stages_folder())
    return {key.digest for key in plan.keys if cache.has(key)}


def _chats(request: BuildRequest, recipe: Recipe) -> list[Chat] | None:
    if not recipe.calibration_chats:
        return None
    if request.calibration is not None:
        return read_calibration_file(request.calibration)
    return calibration_chats(recipe.calibration_chats)


def _calibration(chats: list[Chat], tokenizer: ChatTokenizer, file: Path | None) -> Calibration:
    sequences = encode_chats(tokenizer, chats)
    used = cut_chats(sequences)
    data = (resources.files(quantization) / "chats.jsonl").read_bytes() if file is None else file.read_bytes()
    entry = CalibrationEntry(
        source=PACKAGED if file is None else file.name,
        sha256=hashlib.sha256(data).hexdigest(),
        chats=len(used),
        tokens=sum(map(len, used)),
    )
    return Calibration(sequences, entry)


def _check_context(recipe: Recipe, checkpoint: Checkpoint) -> None:
    trained = checkpoint.config.max_position
    if recipe.max_context > trained:
        raise UsageError(
            f"a context of {recipe.max_context:,} tokens was asked for; {checkpoint.name} was trained for "
            f"{trained:,}. Use --max-context {trained} or less."
        )
