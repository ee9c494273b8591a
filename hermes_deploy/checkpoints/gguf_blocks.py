"""GGUF weight blocks -> float32, one tensor at a time.

Q4_1 and Q8_0 (what the demo model is made of) have a vectorised form here, bitwise equal to the
`gguf` package's and about twice as fast; every other type goes through the package.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as dequantize_any

from hermes_deploy.checkpoints.gguf_header import GgufTensor

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def read_rows(tensor: GgufTensor, view: memoryview) -> Bytes:
    """The stored bytes as [rows, bytes a row], a read-only view of the map; a vector is one row."""
    block, block_bytes = GGML_QUANT_SIZES[tensor.kind]
    row_bytes = tensor.shape[-1] // block * block_bytes
    return np.frombuffer(view[tensor.begin : tensor.end], dtype=np.uint8).reshape(-1, row_bytes)


def dequantize(rows: Bytes, kind: GGMLQuantizationType) -> npt.NDArray[Any]:
    """[rows, bytes] -> [rows, columns]: float16 for F16, else float32. NotImplementedError for a type gguf lacks."""
    if kind == GGMLQuantizationType.F32:
        return rows.view("<f4")
    if kind == GGMLQuantizationType.F16:
        return rows.view("<f2")
    if kind == GGMLQuantizationType.Q4_1:
        return _q4_1(rows)
    if kind == GGMLQuantizationType.Q8_0:
        return _q8_0(rows)
    return cast(Floats, dequantize_any(rows, kind)).astype(np.float32, copy=False)


def _q4_1(rows: Bytes) -> Floats:
    """Blocks of 32: fp16 step, fp16 minimum, 16 bytes of two weights each (low nibbles first)."""
    blocks = rows.reshape(len(rows), -1, 20)
    facts = np.ascontiguousarray(blocks[..., :4]).view("<f2").astype(np.float32)
    step, least = facts[..., 0, None], facts[..., 1, None, None]
    nibbles = blocks[..., 4:]
    out = np.empty((*blocks.shape[:2], 2, 16), np.float32)
    np.multiply(nibbles & 15, step, out=out[:, :, 0])
    np.multiply(nibbles >> 4, step, out=out[:, :, 1])
    out += least
    return out.reshape(len(rows), -1)


def _q8_0(rows: Bytes) -> Floats:
    """Blocks of 32: fp16 step, 32 signed bytes."""
    blocks = rows.reshape(len(rows), -1, 34)
    step = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    return np.multiply(blocks[..., 2:].view(np.int8), step, dtype=np.float32).reshape(len(rows), -1)
