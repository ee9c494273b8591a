"""What each cached stage does: reads what the stages before it left, writes its own files.

Every function takes a folder to write into and how to tell its progress; keys, cache and order are
not known here. Files are npz without pickles, JSON, ONNX and TensorRT plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.engines import EngineGroup, build_engine
from hermes_deploy.pipeline.events import Tell
from hermes_deploy.pipeline.plan import profiles
from hermes_deploy.pipeline.variants import MODEL, Variant, save_variant
from hermes_deploy.quantization import Preparation, prepare
from hermes_deploy.recipes import Recipe
from hermes_deploy.verification import (
    GateResult,
    Reference,
    over_threshold,
    prepare_reference,
    run_gate,
    write_reference,
)

PREPARATION = "preparation.npz"
REFERENCE = "reference.npz"
GATE = "gate.json"


def make_preparation(
    variant: Variant,
    recipe: Recipe,
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[int]],
    into: Path,
    tell: Tell,
) -> None:
    found = prepare(
        checkpoint.config, checkpoint.tensors, sequences, recipe, variant.targets[0], _counts(tell, "layers")
    )
    found.save(into / PREPARATION)


def make_reference(checkpoint: Checkpoint, tokenizer: ChatTokenizer, positions: int, into: Path, tell: Tell) -> None:
    found = prepare_reference(checkpoint, tokenizer, positions=positions, progress=_counts(tell, "steps"))
    write_reference(found, checkpoint, into / REFERENCE)


def make_graph(
    variant: Variant, recipe: Recipe, checkpoint: Checkpoint, preparation: Preparation | None, into: Path, tell: Tell
) -> None:
    save_variant(variant, into, recipe, checkpoint, preparation, tell)


def make_gate(
    variant: Variant,
    recipe: Recipe,
    reference: Reference,
    tokenizer: ChatTokenizer,
    preparation: Preparation | None,
    graph: Path,
    into: Path,
    tell: Tell,
) -> None:
    """Measures; `read_gate` judges. Raises GateError for answers that are not finite."""
    result = run_gate(
        reference,
        graph / MODEL,
        variant.targets[0],
        recipe,
        tokenizer=tokenizer,
        tensors=None if preparation is None else preparation.tensors(reference.config, reference.tensors),
        accept_degraded=True,
        progress=_counts(tell, "positions"),
    )
    (into / GATE).write_text(result.to_json(), encoding="utf-8")


def read_gate(folder: Path, recipe: Recipe, parameters: int) -> GateResult:
    """What the gate measured, judged by the thresholds of now: measuring does not depend on them."""
    measured = GateResult.from_json((folder / GATE).read_bytes())
    allowed = recipe.thresholds(parameters)
    problems = tuple(over_threshold(measured.measures, allowed, measured.worst_tensor, measured.chain))
    return replace(
        measured,
        passed=not problems,
        problems=problems,
        recipe=recipe.name,
        thresholds=allowed.model_dump(exclude_none=True),
    )


def make_engine(
    group: EngineGroup, recipe: Recipe, preparation: Preparation | None, graph: Path, into: Path, tell: Tell
) -> None:
    build_engine(
        graph / MODEL,
        group.targets,
        into,
        recipe=recipe,
        profiles=profiles(recipe),
        kept=() if preparation is None else preparation.kept,
        progress=lambda at: tell(at.step, at.steps, at.phase),
    )


def _counts(tell: Tell, unit: str) -> Callable[[int, int], None]:
    return lambda done, total: tell(done, total, unit)
