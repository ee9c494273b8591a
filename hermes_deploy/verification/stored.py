"""Numbers of a stored tensor, some rows at a time: float32, whatever they are stored as.

`onnx_ir` keeps what it has read of a file, 4-bit codes a byte each, until the whole model is let go:
a second copy of all weights. Here only the rows that are asked for are read, and nothing is kept.
"""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.errors import GateError

Float = npt.NDArray[np.float32]

_NIBBLES = np.arange(16, dtype=np.uint8)
_FOUR_BITS: dict[ir.DataType, Float] = {
    ir.DataType.UINT4: _NIBBLES.astype(np.float32),
    ir.DataType.INT4: ((_NIBBLES ^ 8).astype(np.float32) - 8),
    ir.DataType.FLOAT4E2M1: _NIBBLES.view(ml_dtypes.float4_e2m1fn).astype(np.float32),
}
_PAIRS = {dtype: np.stack((np.tile(values, 16), np.repeat(values, 16)), axis=1) for dtype, values in _FOUR_BITS.items()}
"""By byte the two numbers in it, low nibble first."""


def rows_of(tensor: ir.TensorProtocol, top: int, stop: int) -> Float:
    """Rows top..stop of a matrix, float32 [stop - top, columns], the caller's own."""
    rows, columns = tensor.shape.numpy()
    stop = min(stop, rows)
    if not isinstance(tensor, ir.ExternalTensor):
        return np.array(tensor.numpy()[top:stop], dtype=np.float32)
    if tensor.dtype not in _PAIRS:
        return _read(tensor, top * columns, (stop - top) * columns).reshape(-1, columns)
    first, last = top * columns, stop * columns  # a row may begin in the middle of a byte
    packed = _read_bytes(tensor, first // 2, (last + 1) // 2)
    pairs = _PAIRS[tensor.dtype][packed].reshape(-1)
    return pairs[first % 2 : first % 2 + last - first].reshape(-1, columns)


def picked_rows(tensor: ir.TensorProtocol, rows: npt.NDArray[np.int64]) -> Float:
    """Single rows of a matrix, float32 [len(rows), columns]; each of them is read once."""
    distinct, place = np.unique(rows, return_inverse=True)
    read: Float = np.concatenate([rows_of(tensor, int(row), int(row) + 1) for row in distinct])[place]
    return read


def picked_columns(tensor: ir.TensorProtocol, columns: npt.NDArray[np.int64]) -> Float:
    """Single columns of a matrix, float32 [rows, len(columns)]."""
    rows = int(tensor.shape.numpy()[0])
    return np.concatenate([rows_of(tensor, top, top + 64)[:, columns] for top in range(0, rows, 64)])


def vector_of(tensor: ir.TensorProtocol) -> Float:
    """All of a small tensor, in its shape."""
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype in _PAIRS:
        return np.asarray(tensor.numpy(), dtype=np.float32)
    shape = tensor.shape.numpy()
    return _read(tensor, 0, math.prod(shape)).reshape(shape)


def _read(tensor: ir.ExternalTensor, first: int, count: int) -> Float:
    dtype = tensor.dtype.numpy()
    values = _read_bytes(tensor, first * dtype.itemsize, (first + count) * dtype.itemsize).view(dtype)
    return values if dtype == np.float32 else values.astype(np.float32)


def _read_bytes(tensor: ir.ExternalTensor, first: int, last: int) -> npt.NDArray[np.uint8]:
    with Path(tensor.path).open("rb") as stream:
        stream.seek((tensor.offset or 0) + first)
        content = np.fromfile(stream, dtype=np.uint8, count=last - first)
    if len(content) != last - first:
        raise GateError(f"{tensor.path} ends before the weights of {tensor.name}; build again")
    return content
