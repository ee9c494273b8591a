"""Runs in optimum's environment: exports FOLDER/checkpoint, runs it over FOLDER/ids.npy, saves the logits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from optimum.exporters.onnx import main_export


def main(folder: Path) -> None:
    main_export(str(folder / "checkpoint"), folder / "optimum", task="text-generation", do_validation=False)
    session = ort.InferenceSession(str(folder / "optimum" / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = np.load(folder / "ids.npy")
    positions = np.tile(np.arange(ids.shape[1]), (ids.shape[0], 1))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions}
    wanted = {node.name for node in session.get_inputs()}
    logits = session.run(["logits"], {name: value for name, value in feeds.items() if name in wanted})[0]
    np.save(folder / "optimum-logits.npy", logits)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
