"""Source tensors to initializers that are read only while they are written. Pure until evaluated.

Takes `LazyTensor`s of a checkpoint, gives `onnx_ir.LazyTensor`s: nothing is loaded when the graph
is built, nothing is kept after evaluation, and a fused weight holds one source at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.checkpoints.checkpoint import LazyTensor
from hermes_deploy.errors import GraphError

NUMPY_DTYPES: dict[str, type[np.floating[Any]]] = {"fp32": np.float32, "fp16": np.float16}
ONNX_DTYPES: dict[str, ir.DataType] = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16}

_TILE = 256  # rows of the source that are transposed at a time: the strided side stays in cache


class Source:
    """The checkpoint's tensors, looked up by Hugging Face name and checked by shape."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        self._tensors = tensors

    def __call__(self, name: str, shape: tuple[int, ...]) -> LazyTensor:
        """Raises GraphError where the checkpoint has no such tensor or one of another shape."""
        try:
            tensor = self._tensors[name]
        except KeyError:
            raise GraphError(
                f"the checkpoint has no tensor {name!r}, which its configuration calls for; "
                "it is incomplete or of another architecture."
            ) from None
        if tuple(tensor.shape) != shape:
            raise GraphError(
                f"tensor {name!r} is {list(tensor.shape)}; the checkpoint's configuration calls for {list(shape)}."
            )
        return tensor


def linear_weight(name: str, sources: Sequence[LazyTensor], precision: str) -> ir.LazyTensor:
    """`[N_i, K]` sources, transposed and put side by side: `[K, sum(N_i)]`."""
    inputs = sources[0].shape[1]
    outputs = sum(source.shape[0] for source in sources)

    def evaluate() -> npt.NDArray[Any]:
        joined = np.empty((inputs, outputs), dtype=NUMPY_DTYPES[precision])
        at = 0
        for source in sources:
            values = source.load()
            for row in range(0, values.shape[0], _TILE):
                tile = values[row : row + _TILE]
                joined[:, at + row : at + row + tile.shape[0]] = tile.T
            at += values.shape[0]
            del values, tile  # before the next source is loaded
        return joined

    return lazy(name, (inputs, outputs), precision, evaluate)


def plain_weight(name: str, source: LazyTensor, precision: str) -> ir.LazyTensor:
    """The source as it is, in the given precision."""

    def evaluate() -> npt.NDArray[Any]:
        return np.ascontiguousarray(source.load(), dtype=NUMPY_DTYPES[precision])

    return lazy(name, tuple(source.shape), precision, evaluate)


def lazy(name: str, shape: tuple[int, ...], precision: str, evaluate: Callable[[], npt.NDArray[Any]]) -> ir.LazyTensor:
    """An initializer that calls `evaluate` each time it is read; GraphError when fp16 overflows."""

    def tensor() -> ir.TensorProtocol:
        # the cast's own warning is turned into an error that names the tensor
        with np.errstate(over="ignore"):
            values = evaluate()
        if precision == "fp16" and not np.isfinite(values).all():
            raise GraphError(
                f"weight {name!r} holds values beyond fp16 (65504), which GPU targets compute in. "
                "What takes it: --target cpu --recipe fp32."
            )
        return ir.Tensor(values, dtype=ONNX_DTYPES[precision], shape=ir.Shape(shape), name=name)

    return ir.LazyTensor(tensor, dtype=ONNX_DTYPES[precision], shape=ir.Shape(shape), name=name)
