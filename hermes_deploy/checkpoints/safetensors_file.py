"""One .safetensors file -> lazy tensors on a memory map. Format: https://github.com/huggingface/safetensors.

The header is untrusted: its length, offsets, shapes and names are checked against the file before
anything is mapped, duplicate names included, so a damaged header cannot pass for another tensor.
A tensor's pages leave the process with the last array that shows them.
Damage to the numbers themselves shows only where it makes a NaN or an infinity (looked for at load).
"""

from __future__ import annotations

import json
import math
import mmap
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import LazyTensor
from hermes_deploy.checkpoints.quantized_source import INSTEAD
from hermes_deploy.errors import CheckpointError

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_MAX_HEADER = 100 << 20


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Name -> lazy tensor of one file. `load()` gives a read-only view of the map. Raises CheckpointError."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER):
                raise _damaged(path, f"its header claims {length} bytes in a file of {size}")
            header = stream.read(length)
            whole = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    entries = _parse_header(header, size - 8 - length, path)
    return {entry.name: _lazy(entry, whole, 8 + length, path) for entry in entries}


def check_finite(array: npt.NDArray[Any], name: str, where: str) -> None:
    """Raises CheckpointError when `array` holds a NaN or an infinity."""
    # Minimum and maximum carry NaN and need no temporary of the tensor's size.
    if array.dtype == DTYPES["BF16"]:
        finite = bool(((array.view(np.uint16) & 0x7F80) != 0x7F80).all())
    else:
        finite = bool(np.isfinite(array.min()) and np.isfinite(array.max()))
    if not finite:
        raise CheckpointError(f"{where}: {name} holds NaN or infinite weights; the file is damaged, get it again")


def _lazy(entry: _Entry, whole: mmap.mmap, base: int, path: Path) -> LazyTensor:
    def load() -> npt.NDArray[Any]:
        flat = np.frombuffer(whole, DTYPES[entry.dtype], math.prod(entry.shape), base + entry.begin)
        weakref.finalize(flat, _give_back, whole, base + entry.begin, base + entry.end)
        array = flat.reshape(entry.shape)
        check_finite(array, entry.name, str(path))
        return array

    return LazyTensor(entry.name, entry.shape, entry.dtype, load)


def _give_back(whole: mmap.mmap, begin: int, end: int) -> None:
    """Takes the pages of a tensor that nobody looks at any more out of this process. They stay in the page cache."""
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    if first < end:
        whole.madvise(mmap.MADV_DONTNEED, first, end - first)


def _parse_header(header: bytes, data_size: int, path: Path) -> list[_Entry]:
    try:
        data = json.loads(header, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise _damaged(path, "its header is not a JSON object")
    entries = [_parse_entry(name, value, path) for name, value in data.items() if name != "__metadata__"]
    position = 0
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.begin != position:
            raise _damaged(path, f"{entry.name} begins at byte {entry.begin}, the tensor before it ends at {position}")
        position = entry.end
    if position != data_size:
        raise _damaged(path, f"its tensors take {position} bytes, the file holds {data_size}; the download is cut off")
    return entries


def _parse_entry(name: str, value: object, path: Path) -> _Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"the header entry of {name} is not dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or not shape or 0 in shape:
        raise _damaged(path, f"{name} has shape {shape} and data_offsets {offsets}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: {name} is {dtype}; weights may be: {', '.join(DTYPES)}. If they are already quantized, {INSTEAD}."
        )
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise _damaged(path, f"{name} ({dtype} {shape}) does not fill bytes {begin}..{end}")
    return _Entry(name, dtype, tuple(shape), begin, end)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is not an intact safetensors file: {what}. Get the file again.")
