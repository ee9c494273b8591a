"""8-bit codes with one scale a column: a float matrix [K, N] in, codes and scales out.

    INT8   -127..127, symmetric (-128 is left out, so that the negative of every code is one)
    E4M3   FP8 of 4 exponent and 3 mantissa bits, finite: OCP 8-bit Floating Point, `float8_e4m3fn`

Values are code * scale * factor[column], with scale * factor = max|w of the column| / largest code, so
that the largest weight of a column meets the largest code. The scale is that of the smallest column:
factors are 1 and more, and what a GEMM writes before they are multiplied in is no larger than its
result. Knows no graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import QuantizationError

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
LARGEST_E4M3 = 448.0
LARGEST_INT8 = 127.0

_WIDEST = 1024.0
"""Largest factor. A column that is weaker than that against the largest has a factor below 1."""

_ROWS = 64

Columns = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
"""Codes [K, N], scale [] and factors [N]."""


def to_int8(weight: npt.NDArray[Any], scale_dtype: np.dtype[Any], name: str = "weight") -> Columns:
    """Codes int8; scale and factors of `scale_dtype`.

    Raises QuantizationError when a weight is not finite. `name` is for the message.
    """
    return _quantized(weight, scale_dtype, name, np.dtype(np.int8), LARGEST_INT8)


def to_e4m3(weight: npt.NDArray[Any], scale_dtype: np.dtype[Any], name: str = "weight") -> Columns:
    """Codes float8_e4m3fn; as `to_int8` else."""
    return _quantized(weight, scale_dtype, name, E4M3, LARGEST_E4M3)


def scale_for(largest: npt.NDArray[np.float32] | float, dtype: np.dtype[Any], most: float) -> npt.NDArray[Any]:
    """max|x| / `most` in `dtype`, never below its smallest normal number (there it loses digits)."""
    scale = np.asarray(largest, dtype=np.float32) / np.float32(most)
    return np.maximum(scale, np.float32(np.finfo(dtype).tiny)).astype(dtype)


def dequantize(quantized: Columns) -> npt.NDArray[np.float32]:
    """The float32 matrix [K, N] that an engine computes with."""
    codes, scale, factors = quantized
    value: npt.NDArray[np.float32] = codes.astype(np.float32) * (scale.astype(np.float32) * factors.astype(np.float32))
    return value


def _quantized(
    weight: npt.NDArray[Any], scale_dtype: np.dtype[Any], name: str, dtype: np.dtype[Any], most: float
) -> Columns:
    scale, factors = _scales(_peaks(weight, name) / np.float32(most), scale_dtype)
    # a product of two small numbers may be none that has an inverse
    steps = np.maximum(scale.astype(np.float32) * factors.astype(np.float32), np.finfo(np.float32).tiny)
    inverse = np.float32(1) / steps
    codes = np.empty(weight.shape, dtype=dtype)
    for top, piece in _pieces(weight):
        scaled = piece * inverse
        if dtype != E4M3:
            np.rint(scaled, out=scaled)
        np.clip(scaled, -most, most, out=scaled)  # a scale rounded down must not reach NaN, or wrap around
        codes[top : top + len(scaled)] = scaled.astype(dtype)
    return codes, scale, factors


def _scales(wanted: npt.NDArray[np.float32], dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """One scale [] and factors [N] in `dtype` whose products are `wanted`; 1 for a column of zeros."""
    tiny = np.float32(np.finfo(dtype).tiny)
    used = wanted[wanted > 0]
    least = max(used.min(), used.max() / np.float32(_WIDEST), tiny) if used.size else np.float32(1)
    scale = np.asarray(least, dtype=dtype)
    factors = np.where(wanted > 0, wanted / scale.astype(np.float32), np.float32(1))
    return scale, np.maximum(factors, tiny).astype(dtype)


def _peaks(weight: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    largest = np.zeros(weight.shape[1], dtype=np.float32)
    for _, piece in _pieces(weight):
        np.maximum(largest, np.abs(piece).max(axis=0), out=largest)
    if not np.isfinite(largest).all():
        raise QuantizationError(f"{name}: holds NaN or infinity; the checkpoint is damaged")
    return largest


def _pieces(weight: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(first row, some rows in float32) from top to bottom: keeps the temporaries small."""
    for top in range(0, weight.shape[0], _ROWS):
        yield top, weight[top : top + _ROWS].astype(np.float32)
