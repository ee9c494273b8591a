"""`make FOLDER`: a tiny random Mistral and token ids. `compare FOLDER`: our two dialects against optimum's logits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.targets import Dialect
from tests.fixtures.tiny import make_mistral
from tests.graphs.driver import GraphDriver

TOLERANCE = 2e-4
"""Largest absolute difference of fp32 logits that counts as the same graph."""


def make(folder: Path) -> None:
    make_mistral(folder / "checkpoint", num_hidden_layers=3)
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(0, 320, (1, 48)))


def compare(folder: Path) -> int:
    checkpoint = open_checkpoint(str(folder / "checkpoint"))
    ids, theirs = np.load(folder / "ids.npy"), np.load(folder / "optimum-logits.npy")
    worst = 0.0
    dialects: tuple[Dialect, ...] = ("portable", "ort")
    for dialect in dialects:
        spec = GraphSpec(checkpoint.config, dialect, "fp32", 64)
        save_model(build_decoder(spec, checkpoint.tensors), folder / f"{dialect}.onnx")
        ours = GraphDriver(folder / f"{dialect}.onnx", spec, slots=1).step(slice(0, 1), ids, [0])
        difference = float(np.abs(ours - theirs).max())
        worst = max(worst, difference)
        print(f"{dialect}: largest difference from optimum's export {difference:.2e} over {ours.shape[1]} positions")
    return 0 if worst < TOLERANCE else 1


if __name__ == "__main__":
    verb, where = sys.argv[1], Path(sys.argv[2])
    sys.exit(make(where) if verb == "make" else compare(where))
