"""Rotary tables: cosines and sines of every position, `[max_context, head_dim / 2]`. Pure.

Half-split (GPT-NeoX) rotation, as Hugging Face checkpoints of Mistral and Llama store q and k.
Angles are rounded to fp32 where transformers rounds them (frequency, then position x frequency):
at long positions that rounding is larger than the tolerance of the tests, and models were trained
with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.graphs.builder import GraphBuilder
from hermes_deploy.graphs.weights import Fill, Weight


def angles(theta: float, head_dim: int, positions: int) -> npt.NDArray[np.float32]:
    """Radians, `[positions, head_dim / 2]`."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = (1.0 / np.power(np.float64(theta), exponents)).astype(np.float32)
    return np.outer(np.arange(positions, dtype=np.float32), frequencies)


def rope_tables(b: GraphBuilder) -> tuple[ir.Value, ir.Value]:
    """The initializers `rope.cos` and `rope.sin`, shared by all layers, in the activation dtype."""
    theta, head_dim, positions, precision = (
        b.config.rope_theta,
        b.config.head_dim,
        b.spec.max_context,
        b.spec.activation,
    )

    def table(name: str, function: Callable[[Any], Any]) -> ir.Value:
        def open_rows() -> Fill:
            radians = angles(theta, head_dim, positions).astype(np.float64)

            def fill(top: int, bottom: int, into: npt.NDArray[Any]) -> None:
                into[...] = function(radians[top:bottom])

            return fill

        return b.initializer(Weight(name, (positions, head_dim // 2), precision, open_rows))

    return table("rope.cos", np.cos), table("rope.sin", np.sin)
