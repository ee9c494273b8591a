"""Several tensors that one computation makes, as lazy initializers. Knows no arithmetic.

Saving asks for the codes of a matrix and soon after for its scales; both come from one reading of
the source. Between the two only what is smaller than the part asked for is kept, so that memory
stays at one matrix whatever the order of asking.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Part:
    """Name, ONNX type and shape of one of the tensors."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]


def together(parts: Sequence[Part], evaluate: Callable[[], Sequence[ir.TensorProtocol]]) -> list[ir.LazyTensor]:
    """One lazy tensor a part. `evaluate` gives all parts, in order, and may be called again."""
    waiting: dict[int, ir.TensorProtocol] = {}
    lock = threading.Lock()

    def take(index: int) -> ir.TensorProtocol:
        with lock:
            if index not in waiting:
                made = evaluate()
                waiting.clear()
                waiting.update(
                    {i: tensor for i, tensor in enumerate(made) if i != index and tensor.nbytes < made[index].nbytes}
                )
                return made[index]
            return waiting.pop(index)

    def taker(index: int) -> Callable[[], ir.TensorProtocol]:
        return lambda: take(index)

    return [
        ir.LazyTensor(taker(index), dtype=part.dtype, shape=ir.Shape(part.shape), name=part.name)
        for index, part in enumerate(parts)
    ]
