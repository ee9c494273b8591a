"""The header of a .gguf file: metadata and where each tensor lies. Reads no weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
The `gguf` package's own reader makes Python objects for every byte range of the 100,000 vocabulary
strings (seconds) and follows lengths without a bound; this one reads the same facts in a fraction of
a second and refuses whatever points outside the file. A test compares the two.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from hermes_deploy.errors import CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_ENTRIES = 1 << 16
_MAX_NAME = 1 << 12


@dataclass(frozen=True)
class GgufTensor:
    """`shape` in numpy's order (rows first); bytes [begin, end) of the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    begin: int
    end: int


@dataclass(frozen=True)
class GgufHeader:
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    view: memoryview
    """The whole file, memory-mapped."""


def read_header(path: Path) -> GgufHeader:
    """Raises CheckpointError when the file is not an intact GGUF."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if size < 24:
                raise CheckpointError(f"{path} is not a GGUF file: it has {size} bytes")
            view = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        return _parse(view)
    except (struct.error, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} is not an intact GGUF file: {error}. Get the file again.") from None


def _parse(view: memoryview) -> GgufHeader:
    if bytes(view[:4]) != b"GGUF":
        raise ValueError(f"it starts with {bytes(view[:4])!r}, not with b'GGUF'")
    version, tensor_count, entry_count = struct.unpack_from("<IQQ", view, 4)
    if version not in (2, 3):
        raise ValueError(f"its version is {version}; versions 2 and 3, little-endian, are read")
    if tensor_count > _MAX_ENTRIES or entry_count > _MAX_ENTRIES:
        raise ValueError(f"it claims {tensor_count} tensors and {entry_count} metadata entries")
    cursor = _Cursor(view, 24)
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = cursor.name()
        if key in metadata:
            raise ValueError(f"metadata {key} occurs twice")
        metadata[key] = cursor.value(cursor.scalar("I"))
    infos = [(cursor.name(), cursor.dimensions(), cursor.scalar("I"), cursor.scalar("Q")) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment > 1 << 16 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}, not a power of two")
    base = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    expected = 0
    for name, shape, kind, offset in infos:
        if name in tensors:
            raise ValueError(f"tensor {name} occurs twice")
        # Writers lay tensors out in order without gaps; anything else is damage that could swap weights.
        if offset != expected:
            raise ValueError(f"tensor {name} lies at {offset}, the one before it asks for {expected}")
        tensor = tensors[name] = _place(name, shape, kind, base + offset, len(view))
        expected = -(-(tensor.end - base) // alignment) * alignment
    return GgufHeader(metadata, tensors, view)


def _place(name: str, shape: tuple[int, ...], kind: int, begin: int, size: int) -> GgufTensor:
    quantization = GGMLQuantizationType(kind)
    block, block_bytes = GGML_QUANT_SIZES[quantization]
    if shape[-1] % block:
        raise ValueError(f"tensor {name}: rows of {shape[-1]} are not whole blocks of {block} ({quantization.name})")
    end = begin + math.prod(shape) // block * block_bytes
    if end > size:
        raise ValueError(f"tensor {name} ends at byte {end}, the file at {size}; the download is cut off")
    return GgufTensor(name, shape, quantization, begin, end)


class _Cursor:
    """Reads forward; every read is checked against the end of the file by struct or by slice length."""

    def __init__(self, view: memoryview, at: int) -> None:
        self.view = view
        self.at = at

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.view, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        (length,) = struct.unpack_from("<Q", self.view, self.at)
        begin = self.at + 8
        if length > len(self.view) - begin:
            raise ValueError(f"a text of {length} bytes at byte {self.at} runs over the end of the file")
        self.at = begin + length
        return str(self.view[begin : self.at], "utf-8")

    def name(self) -> str:
        name = self.string()
        if not name or len(name) > _MAX_NAME:
            raise ValueError(f"a name of {len(name)} characters before byte {self.at}")
        return name

    def dimensions(self) -> tuple[int, ...]:
        count = self.scalar("I")
        if not 1 <= count <= 4:
            raise ValueError(f"a tensor of {count} dimensions before byte {self.at}")
        shape = struct.unpack_from(f"<{count}Q", self.view, self.at)
        self.at += 8 * count
        if any(not 1 <= n <= 1 << 40 for n in shape):
            raise ValueError(f"a tensor of shape {list(shape)} before byte {self.at}")
        return tuple(reversed(shape))

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise ValueError(f"metadata of unknown type {kind} before byte {self.at}")
        return self.scalar(_SCALARS[kind])

    def array(self) -> list[Any]:
        kind, length = struct.unpack_from("<IQ", self.view, self.at)
        self.at += 12
        # The smallest element takes one byte, so a longer array cannot be in the file.
        if length > len(self.view) - self.at:
            raise ValueError(f"an array of {length} elements at byte {self.at} runs over the end of the file")
        if kind == _STRING:
            return [self.string() for _ in range(length)]
        if kind not in _SCALARS:
            raise ValueError(f"an array of unknown type {kind} before byte {self.at}")
        code = f"<{length}{_SCALARS[kind]}"
        values = struct.unpack_from(code, self.view, self.at)
        self.at += struct.calcsize(code)
        return list(values)
