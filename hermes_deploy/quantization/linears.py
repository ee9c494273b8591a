"""Finds the linears of a graph: what `quantize` rewrites and what the gate reads back.

A linear is a node `MatMul(x, W)` whose metadata says `linear: <name>`; before quantization W is an
initializer [K, N], afterwards the output of a DequantizeLinear over initializers. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.errors import QuantizationError
from hermes_deploy.graphs import ATTRIBUTE_LINEAR
from hermes_deploy.graphs.weights import LinearWeight, Turned, Weight


@dataclass(frozen=True)
class Linear:
    """`node` multiplies its input by `weight`, which is `rows` x `columns` (K x N)."""

    name: str
    node: ir.Node
    weight: ir.Value
    rows: int
    columns: int

    def float32(self) -> npt.NDArray[np.float32]:
        """The weight [rows, columns], read now; unrounded where its source has more digits than the graph."""
        stored = self.weight.const_value
        assert stored is not None
        return stored.float32() if isinstance(stored, Weight) else stored.numpy().astype(np.float32, copy=False)

    def tiles(self) -> npt.NDArray[np.float32] | Turned:
        """The same to be read in tiles, `[rows, columns]` at a time, where the source allows it."""
        stored = self.weight.const_value
        return stored.turned() if isinstance(stored, LinearWeight) else self.float32()


def find_linears(model: ir.Model) -> list[Linear]:
    """Every unquantized linear, in the order of the graph.

    Raises QuantizationError when there is none, or one whose weight is not a float initializer
    (the graph has been quantized before).
    """
    found = []
    for node in model.graph:
        name = node.metadata_props.get(ATTRIBUTE_LINEAR)
        if name is None:
            continue
        weight = node.inputs[1] if node.op_type == "MatMul" and len(node.inputs) == 2 else None
        if weight is None or weight.const_value is None or weight.producer() is not None:
            raise QuantizationError(f"linear {name} is not a MatMul with a stored weight; was it quantized before?")
        rows, columns = weight.const_value.shape.numpy()
        found.append(Linear(name, node, weight, rows, columns))
    if not found:
        raise QuantizationError("the graph has no linear; it was not made by hermes_deploy.graphs")
    return found


class Blocked(Protocol):
    """What is to be cut into blocks along its `rows`: a Linear, or a matrix that no graph holds yet."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> int: ...


def choose_block_size(linears: Sequence[Blocked], allowed: Sequence[int], asked: int | None = None) -> int:
    """`asked`, or the first of `allowed`, that divides K of every linear: one size for the whole graph.

    Raises QuantizationError that names the matrices that are in the way and the sizes that would do.
    """
    fitting = [size for size in allowed if all(linear.rows % size == 0 for linear in linears)]
    if asked is None and fitting:
        return fitting[0]
    if asked in fitting:
        return asked
    wanted = min(allowed) if asked is None else asked
    odd = [f"{linear.name} (K = {linear.rows})" for linear in linears if linear.rows % wanted]
    shown = ", ".join(odd[:4]) + (f" and {len(odd) - 4} more" if len(odd) > 4 else "")
    if fitting:
        raise QuantizationError(
            f"block_size {asked} does not divide every matrix: {shown or 'this target does not take it'}. "
            f"Sizes that do: {', '.join(map(str, fitting))}."
        )
    raise QuantizationError(
        f"no block size of {', '.join(map(str, allowed))} divides every matrix: {shown or 'they share none'}. "
        "Use a recipe without blocks (fp16, fp8, or fp32 on the CPU)."
    )
