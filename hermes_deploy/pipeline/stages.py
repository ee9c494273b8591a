"""What each cached stage does: reads what the stages before it left, writes its own files.

Every function takes a folder to write into and how to tell its progress; keys, cache and order are
not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.engines import EngineGroup, build_engine
from hermes_deploy.pipeline.events import Tell
from hermes_deploy.pipeline.plan import profiles
from hermes_deploy.pipeline.results import read_ranges, write_gate, write_ranges, write_reference
from hermes_deploy.pipeline.variants import MODEL, Variant, save_variant
from hermes_deploy.quantization import calibrate
from hermes_deploy.recipes import Recipe
from hermes_deploy.verification import Reference, prepare_reference, run_gate

PREPARATION = "preparation.npz"
REFERENCE = "reference.npz"
GATE = "gate.json"


def make_preparation(checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], into: Path) -> None:
    write_ranges(calibrate(checkpoint.config, checkpoint.tensors, sequences), into / PREPARATION)


def make_reference(checkpoint: Checkpoint, tokenizer: ChatTokenizer, into: Path) -> None:
    write_reference(prepare_reference(checkpoint, tokenizer), into / REFERENCE)


def make_graph(
    variant: Variant, recipe: Recipe, checkpoint: Checkpoint, preparation: Path | None, into: Path, tell: Tell
) -> None:
    """`preparation`: the folder that `make_preparation` wrote, None for a recipe that needs none."""
    ranges = None if preparation is None else read_ranges(preparation / PREPARATION)
    save_variant(variant, into, recipe, checkpoint, ranges, tell)


def make_gate(variant: Variant, recipe: Recipe, reference: Reference, graph: Path, into: Path) -> None:
    """Raises GateError when the graph does not answer like the reference; then nothing is written."""
    write_gate(run_gate(reference, graph / MODEL, variant.targets[0], recipe), into / GATE)


def make_engine(group: EngineGroup, recipe: Recipe, graph: Path, into: Path, tell: Tell) -> None:
    build_engine(
        graph / MODEL,
        group.targets,
        into,
        recipe=recipe,
        profiles=profiles(recipe),
        progress=lambda at: tell(at.step, at.steps, at.phase),
    )
