"""Memory of a KV cache whose rows can be seen side by side in any order, without copying one byte.

An engine wants the rows of a batch to be neighbours; which slots decode together changes all the time.
The rows lie in one anonymous memory file. A view maps the rows that are wanted, in the wanted order, into
fresh addresses: the same pages, so a write through one view is seen in every other. Making a view of two
rows of a small model costs 1 ms, copying a row of 1,000 tokens 10 ms. Linux; pages are taken when they
are first written.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import ServeError

_PAGE = mmap.PAGESIZE
_MAP_FIXED, _MAP_NORESERVE, _PROT_NONE = 0x10, 0x4000, 0
"""Linux's numbers; Python 3.11 names none of them."""
_FAILED = ctypes.c_void_p(-1).value


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def padded_context(context: int, token_bytes: int) -> int:
    """The least number of tokens, `context` or more, that fill whole pages. `token_bytes`: of one row of one cache."""
    step = _PAGE // int(np.gcd(_PAGE, token_bytes))
    return -(-context // step) * step


class CacheMemory:
    """`caches` arrays of `slots` rows of `row_bytes` bytes (whole pages), zeroed.

    Raises ServeError where the system does not give the memory.
    """

    def __init__(self, caches: int, slots: int, row_bytes: int) -> None:
        if row_bytes % _PAGE:
            raise ValueError(f"a row of {row_bytes} bytes is not a whole number of pages of {_PAGE}")
        self.caches, self.slots, self.row_bytes = caches, slots, row_bytes
        self._libc = _libc()
        size = caches * slots * row_bytes
        try:
            self._file = os.memfd_create("hermes-kv", os.MFD_CLOEXEC)
            os.ftruncate(self._file, size)
            self._all = mmap.mmap(self._file, size)
        except OSError as error:
            raise ServeError(
                f"the KV cache of {size / 1e9:.1f} GB cannot be had: {error.strerror}. "
                "Serve with fewer --max-slots or a shorter --max-context."
            ) from None
        self._bytes = np.frombuffer(self._all, dtype=np.uint8)

    def array(self, cache: int, dtype: npt.DTypeLike, row_shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
        """Every row of one cache, `[slots, *row_shape]`."""
        size = self.slots * self.row_bytes
        whole = self._bytes[cache * size : (cache + 1) * size]
        array: npt.NDArray[np.generic] = whole.view(dtype).reshape(self.slots, *row_shape)
        return array

    def neighbours(self, first: int) -> list[int]:
        """Addresses of row `first` in each cache; the rows after it follow."""
        start = self._bytes.ctypes.data
        return [start + (cache * self.slots + first) * self.row_bytes for cache in range(self.caches)]

    def used_bytes(self) -> int:
        """What the system has really handed out."""
        return os.fstat(self._file).st_blocks * 512

    def close(self) -> None:
        """Gives the memory back. Arrays and views that are still held keep their pages until they go."""
        os.close(self._file)
        self._bytes = np.empty(0, dtype=np.uint8)
        with suppress(BufferError):  # an array is still held
            self._all.close()


class RowView:
    """Rows `slots` of `memory`, side by side in that order: `addresses[cache]` is where the first one begins."""

    def __init__(self, memory: CacheMemory, slots: Sequence[int]) -> None:
        self._libc, self._size = memory._libc, memory.caches * len(slots) * memory.row_bytes
        row = memory.row_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._start = self._map(None, self._size, _PROT_NONE, flags, -1, 0)
        self.addresses = [self._start + cache * len(slots) * row for cache in range(memory.caches)]
        access = mmap.PROT_READ | mmap.PROT_WRITE
        for cache, address in enumerate(self.addresses):
            for place, slot in enumerate(slots):
                offset = (cache * memory.slots + slot) * row
                self._map(address + place * row, row, access, mmap.MAP_SHARED | _MAP_FIXED, memory._file, offset)

    def _map(self, address: int | None, size: int, access: int, flags: int, file: int, offset: int) -> int:
        found: int | None = self._libc.mmap(address, size, access, flags, file, offset)
        if found is None or found == _FAILED:
            why = os.strerror(ctypes.get_errno())
            raise ServeError(f"rows of the KV cache cannot be mapped: {why}. Is vm.max_map_count below 65530?")
        return found

    def __del__(self) -> None:
        if getattr(self, "_start", None) is not None:
            self._libc.munmap(self._start, self._size)
