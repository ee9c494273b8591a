"""FP8 E4M3 (finite, no infinity): a float matrix [K, N] in, codes and one scale a column out.

Values are code * scale with scale = max|w| / 448, so the largest weight of a column meets the
largest FP8 number. Knows no graph. Format: OCP 8-bit Floating Point, E4M3 (`float8_e4m3fn`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import QuantizationError

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
LARGEST = 448.0

_ROWS = 64


def scale_for(
    largest: npt.NDArray[np.float32] | float, dtype: np.dtype[Any], most: float = LARGEST
) -> npt.NDArray[Any]:
    """max|x| / `most` in `dtype`, never below its smallest normal number (there it loses digits)."""
    scale = np.asarray(largest, dtype=np.float32) / np.float32(most)
    return np.maximum(scale, np.float32(np.finfo(dtype).tiny)).astype(dtype)


def quantize_columns(
    weight: npt.NDArray[Any], scale_dtype: np.dtype[Any], name: str = "weight"
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Codes float8_e4m3fn [K, N] and scales [N] of `scale_dtype`.

    Raises QuantizationError when a weight is not finite. `name` is for the message.
    """
    scales = scale_for(column_peaks(weight, name), scale_dtype)
    inverse = np.float32(1) / scales.astype(np.float32)
    codes = np.empty(weight.shape, dtype=E4M3)
    for top, piece in pieces(weight):
        scaled = piece * inverse
        np.clip(scaled, -LARGEST, LARGEST, out=scaled)  # a scale rounded down must not reach NaN
        codes[top : top + len(scaled)] = scaled.astype(E4M3)
    return codes, scales


def column_peaks(weight: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    """max|w| of each column of [K, N]. Raises QuantizationError when one is not finite."""
    largest = np.zeros(weight.shape[1], dtype=np.float32)
    for _, piece in pieces(weight):
        np.maximum(largest, np.abs(piece).max(axis=0), out=largest)
    if not np.isfinite(largest).all():
        raise QuantizationError(f"{name}: holds NaN or infinity; the checkpoint is damaged")
    return largest


def pieces(weight: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(first row, some rows in float32) from top to bottom: keeps the temporaries small."""
    for top in range(0, weight.shape[0], _ROWS):
        yield top, weight[top : top + _ROWS].astype(np.float32)


def dequantize_columns(codes: npt.NDArray[Any], scales: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The float32 matrix [K, N] that an engine computes with."""
    value: npt.NDArray[np.float32] = codes.astype(np.float32) * scales.astype(np.float32)
    return value
