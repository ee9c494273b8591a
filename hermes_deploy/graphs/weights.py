"""Source tensors to initializers that are read only while they are written. Pure until evaluated.

Takes `LazyTensor`s of a checkpoint, gives `Weight`s: nothing is loaded when the graph is built,
nothing is kept after evaluation, and what is written is made strip by strip. All cores share the
turning of a strip: for a 7B it is 15 GB that pass through here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.checkpoints.checkpoint import LazyTensor
from hermes_deploy.errors import GraphError

NUMPY_DTYPES: dict[str, type[np.floating[Any]]] = {"fp32": np.float32, "fp16": np.float16}
ONNX_DTYPES: dict[str, ir.DataType] = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
}

_TILE = 256  # rows and columns that are transposed at a time: both sides stay in cache

_STRIP = 1 << 23  # elements that are in memory while a weight is written

_BF16 = np.dtype(ml_dtypes.bfloat16)


Fill = Callable[[int, int, npt.NDArray[Any]], None]
"""(first row, last row, array): writes these rows of a weight into the array, in the array's dtype."""


class Weight(ir.LazyTensor):
    """A lazy initializer that is written to a file in strips, and can be read before it is rounded.

    `float32()`: the same values and shape in float32, with the source's own digits. What a
    quantizer reads, since a rounding to fp16 before its own is work and error for nothing.
    """

    def __init__(self, name: str, shape: tuple[int, ...], precision: str, open_rows: Callable[[], Fill]) -> None:
        """`open_rows` reads the source, each time anew, and gives what hands out its rows."""
        dtype = ONNX_DTYPES[precision]
        super().__init__(
            lambda: ir.Tensor(self._whole(precision), dtype=dtype, shape=ir.Shape(shape), name=name),
            dtype=dtype,
            shape=ir.Shape(shape),
            name=name,
        )
        self._open_rows, self._size, self._precision = open_rows, shape, precision

    def float32(self) -> npt.NDArray[np.float32]:
        return self._whole("fp32")

    def tofile(self, file: IO[bytes]) -> None:
        """Writes the bytes of the tensor; of a matrix never more than a strip is in memory."""
        rows = self._size[0] if self._size else 1
        height = max(_TILE, _STRIP * rows // math.prod(self._size)) if rows else 1
        fill, strip = self._open_rows(), self._empty(self._precision, min(height, rows))
        for top in range(0, rows, height):
            bottom = min(top + height, rows)
            piece = strip[: bottom - top]
            fill(top, bottom, piece)
            self._check(piece)
            file.write(piece.data.cast("B"))

    def _whole(self, precision: str) -> npt.NDArray[Any]:
        values = self._empty(precision, self._size[0])
        self._open_rows()(0, self._size[0], values)
        self._check(values)
        return values

    def _empty(self, precision: str, rows: int) -> npt.NDArray[Any]:
        return np.empty((rows, *self._size[1:]), dtype=NUMPY_DTYPES[precision])

    def _check(self, values: npt.NDArray[Any]) -> None:
        if values.dtype == np.float16 and not _is_finite(values):
            raise GraphError(
                f"weight {self.name!r} holds values beyond fp16 (65504), which GPU targets compute in. "
                "What takes it: --target cpu --recipe fp32."
            )


class LinearWeight(Weight):
    """A `Weight` `[K, sum(N_i)]` over sources `[N_i, K]`. `turned()` reads it in tiles."""

    def __init__(self, name: str, sources: Sequence[LazyTensor], precision: str) -> None:
        def open_rows() -> Fill:
            loaded = [source.load() for source in sources]

            def fill(top: int, bottom: int, into: npt.NDArray[Any]) -> None:
                left = 0
                for values in loaded:
                    _transpose(values[:, top:bottom], into[:, left : left + len(values)])
                    left += len(values)

            return fill

        shape = (sources[0].shape[1], sum(source.shape[0] for source in sources))
        super().__init__(name, shape, precision, open_rows)
        self._sources = sources

    def turned(self) -> Turned:
        return Turned([source.load() for source in self._sources])


class Turned:
    """`[K, sum(N_i)]` in float32 over loaded sources `[N_i, K]`: `turned[rows, columns]` makes one tile.

    What is made stays in the core's cache. A whole matrix does not: for a 7B it would be written
    to, and read from, memory that the kernel has to hand out and clear first, 30 GB in all.
    """

    def __init__(self, sources: Sequence[npt.NDArray[Any]]) -> None:
        self._sources = sources
        self.shape = (sources[0].shape[1], sum(len(source) for source in sources))

    def __getitem__(self, at: tuple[slice, slice]) -> npt.NDArray[np.float32]:
        """A new array. Slices without a step."""
        (top, bottom, _), (left, right, _) = (part.indices(size) for part, size in zip(at, self.shape, strict=True))
        tile = np.empty((bottom - top, right - left), dtype=np.float32)
        begin = 0
        for source in self._sources:
            first, last = max(left, begin), min(right, begin + len(source))
            if first < last:
                _turn(source[first - begin : last - begin, top:bottom], tile[:, first - left : last - left])
            begin += len(source)
        return tile


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


def linear_weight(name: str, sources: Sequence[LazyTensor], precision: str) -> LinearWeight:
    """`[N_i, K]` sources, transposed and put side by side: `[K, sum(N_i)]`."""
    return LinearWeight(name, sources, precision)


def plain_weight(name: str, source: LazyTensor, precision: str) -> Weight:
    """The source as it is, in the given precision."""

    def open_rows() -> Fill:
        values = source.load()

        def fill(top: int, bottom: int, into: npt.NDArray[Any]) -> None:
            with np.errstate(over="ignore"):  # the error of the check names the tensor
                into[...] = values[top:bottom]

        return fill

    return Weight(name, tuple(source.shape), precision, open_rows)


def _transpose(values: npt.NDArray[Any], into: npt.NDArray[Any]) -> None:
    """`into` [K, N] becomes `values` [N, K] turned, in the dtype of `into`."""

    def rows(top: int) -> None:
        _turn(values[top : top + _TILE], into[:, top : top + _TILE])

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # numpy lets go of the GIL inside its loops
        list(pool.map(rows, range(0, len(values), _TILE)))


def _turn(values: npt.NDArray[Any], into: npt.NDArray[Any]) -> None:
    widens = values.dtype == _BF16 and into.dtype == np.float32
    for left in range(0, values.shape[1], _TILE):
        tile = values[:, left : left + _TILE]
        if widens:
            # a bfloat16 is the upper half of a float32; numpy's own cast takes twice the time
            bits = tile.view(np.uint16).astype(np.uint32)
            bits <<= 16
            tile = bits.view(np.float32)
        with np.errstate(over="ignore"):  # a thread has its own
            into[left : left + _TILE] = tile.T


def _is_finite(values: npt.NDArray[Any]) -> bool:
    """Of float16, by its bits: a fourth of the time of numpy's isfinite, and no temporary of its size."""
    flat = values.reshape(-1).view(np.uint16)
    pieces = (flat[start : start + (_TILE << 8)] for start in range(0, flat.size, _TILE << 8))
    return all((piece & 0x7FFF).max() < 0x7C00 for piece in pieces)
