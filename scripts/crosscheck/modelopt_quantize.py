"""Runs in modelopt's environment: quantizes one ONNX graph.

    modelopt_quantize.py GRAPH IDS.npy MODE METHOD OUTPUT [--head]

What our recipes quantize and no more: the matrices of the blocks, and the head only with --head; not
attention's own products. Calibrated on the token ids. MODE and METHOD are modelopt's own words.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from modelopt.onnx.quantization import quantize


def main(graph: str, ids_file: str, mode: str, method: str, output: str, head: str = "") -> None:
    ids = np.load(ids_file)
    positions = np.tile(np.arange(ids.shape[1]), (ids.shape[0], 1))
    quantize(
        graph,
        quantize_mode=mode,
        calibration_method=method,
        calibration_data={"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions},
        calibration_eps=["cpu"],
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=[] if head else ["/lm_head/MatMul"],
        disable_mha_qdq=True,
        high_precision_dtype="fp32",
        block_size=128 if mode == "int4" else None,
        output_path=output,
        log_level="ERROR",
    )
    print(json.dumps({"file": output}))


if __name__ == "__main__":
    main(*sys.argv[1:])
