"""Memory in which an engine's cache lies, and the rows in it. Knows addresses and bytes, no engine.

`Memory` is all that is asked of a device. `HostMemory` is this machine's own, so that everything above it
runs without a GPU; `cuda_memory.CudaMemory` is the GPU's. `RowCaches` are the caches of a graph, every
one `[slots, kv_heads, length, head_dim]`, at addresses that do not change.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from hermes_deploy.runtime.sessions.row_layout import Exchange

ALIGNMENT = 256
"""What TensorRT asks of an address, in bytes (IExecutionContext::setTensorAddress)."""


class Memory(Protocol):
    """Addresses are integers. Copies run in order on `stream` and are done after `synchronize`."""

    device: Literal["cpu", "cuda"]
    index: int
    """Number of the device, as CUDA counts those that it may see."""
    stream: int

    def use(self) -> None:
        """Makes this the device of the calling thread."""
        ...

    def allocate(self, size: int) -> int:
        """`size` bytes of zeros on the device, aligned to ALIGNMENT; they stay until `close`."""
        ...

    def host(self, size: int) -> npt.NDArray[np.uint8]:
        """`size` bytes of the host's memory [size] that the device copies without a detour."""
        ...

    def copy(self, target: int, source: int, pitch: int, width: int, height: int) -> None:
        """`height` pieces of `width` bytes, one every `pitch` bytes, within the device."""
        ...

    def upload(self, target: int, source: npt.NDArray[np.uint8]) -> None:
        """From memory of `host`."""
        ...

    def download(self, target: npt.NDArray[np.uint8], source: int) -> None:
        """Into memory of `host`."""
        ...

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


class HostMemory:
    """The process's own memory; see `Memory`."""

    device: Literal["cpu", "cuda"] = "cpu"
    index = 0
    stream = 0

    def __init__(self) -> None:
        self._kept: list[npt.NDArray[np.uint8]] = []

    def use(self) -> None:
        pass

    def allocate(self, size: int) -> int:
        self._kept.append(np.zeros(size + ALIGNMENT, dtype=np.uint8))
        address = self._kept[-1].ctypes.data
        return address + -address % ALIGNMENT

    def host(self, size: int) -> npt.NDArray[np.uint8]:
        return np.zeros(size, dtype=np.uint8)

    def copy(self, target: int, source: int, pitch: int, width: int, height: int) -> None:
        if width and height:
            pieces(target, pitch, width, height)[:] = pieces(source, pitch, width, height)

    def upload(self, target: int, source: npt.NDArray[np.uint8]) -> None:
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def download(self, target: npt.NDArray[np.uint8], source: int) -> None:
        ctypes.memmove(target.ctypes.data, source, target.nbytes)

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        self._kept.clear()


def pieces(address: int, pitch: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """The bytes [height, width] at `address` of the host, one row every `pitch` bytes."""
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * (pitch * (height - 1) + width)).from_address(address))
    return np.ndarray((height, width), np.uint8, buffer=memory, strides=(pitch, 1))


class RowCaches:
    """The caches `names`, each `[slots, kv_heads, length, head_dim]` of `dtype`, zeroed, in `memory`.

    Zeros matter: an engine that masks by -inf still multiplies what was never written by 0.
    `token_bytes` and `row_bytes` are of one row of one cache.
    """

    def __init__(
        self,
        memory: Memory,
        names: Sequence[str],
        slots: int,
        row_shape: tuple[int, int, int],
        dtype: npt.DTypeLike,
    ) -> None:
        kv_heads, length, head_dim = row_shape
        self._memory, self._heads = memory, kv_heads
        self._head_bytes = head_dim * np.dtype(dtype).itemsize
        self._pitch = length * self._head_bytes
        self.names = tuple(names)
        self.row_shape, self.dtype = row_shape, np.dtype(dtype)
        self.token_bytes = kv_heads * self._head_bytes
        self.row_bytes = kv_heads * self._pitch
        self._start = {name: memory.allocate(slots * self.row_bytes) for name in names}
        # for one exchange in one cache: with a spare row for all caches, one slot less would fit
        self._spare = memory.allocate(self.row_bytes) if slots > 1 else 0

    def address(self, name: str, row: int) -> int:
        """Where that row of that cache begins; the next rows follow."""
        return self._start[name] + row * self.row_bytes

    def copy(self, source: int, target: int, start: int, count: int) -> None:
        """Positions start..start+count of row `source` become those of row `target`, in every cache."""
        for name in self.names:
            self._copy(self.address(name, target), self.address(name, source), start, count)

    def exchange(self, move: Exchange) -> None:
        """Rows change places, in every cache; an empty one is not moved."""
        for name in self.names:
            one, other = self.address(name, move.one), self.address(name, move.other)
            if move.one_tokens and move.other_tokens:
                self._copy(self._spare, one, 0, move.one_tokens)
                self._copy(one, other, 0, move.other_tokens)
                self._copy(other, self._spare, 0, move.one_tokens)
            else:
                self._copy(one, other, 0, move.other_tokens)
                self._copy(other, one, 0, move.one_tokens)

    def _copy(self, target: int, source: int, start: int, count: int) -> None:
        if count:
            offset = start * self._head_bytes
            self._memory.copy(target + offset, source + offset, self._pitch, count * self._head_bytes, self._heads)
