"""Finds the linears of a graph: what `quantize` rewrites and what the gate reads back.

A linear is a node `MatMul(x, W)` whose metadata says `linear: <name>`; before quantization W is an
initializer [K, N], afterwards the output of a DequantizeLinear over initializers. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from hermes_deploy.errors import QuantizationError
from hermes_deploy.graphs import ATTRIBUTE_LINEAR


@dataclass(frozen=True)
class Linear:
    """`node` multiplies its input by `weight`, which is `rows` x `columns` (K x N)."""

    name: str
    node: ir.Node
    weight: ir.Value
    rows: int
    columns: int


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


def choose_block_size(linears: Sequence[Linear], allowed: Sequence[int]) -> int:
    """The first of `allowed` that divides K of every linear: one size for the whole graph.

    Raises QuantizationError that names the matrices that are in the way.
    """
    for size in allowed:
        if all(linear.rows % size == 0 for linear in linears):
            return size
    smallest = min(allowed)
    odd = [f"{linear.name} (K = {linear.rows})" for linear in linears if linear.rows % smallest]
    shown = ", ".join(odd[:4]) + (f" and {len(odd) - 4} more" if len(odd) > 4 else "")
    raise QuantizationError(
        f"no 4-bit block size of {', '.join(map(str, allowed))} divides every matrix: {shown or 'they share none'}. "
        "Use a recipe without blocks (fp16, fp8, or fp32 on the CPU)."
    )
