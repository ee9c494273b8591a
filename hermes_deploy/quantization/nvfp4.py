"""NVFP4: a float matrix [K, N] in, 4-bit float codes and scales of two levels out.

E2M1 codes (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) in blocks of 16 along K; each block has an
E4M3 scale, and one number scales them all: value = code * scale * whole. Round to nearest, with
the largest weight of a block at 6. Knows no graph. Format: OCP Microscaling E2M1 elements with NVIDIA's
block of 16 and E4M3 scales.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization.columns import E4M3, LARGEST_E4M3, scale_for

E2M1 = np.dtype(ml_dtypes.float4_e2m1fn)
LARGEST_E2M1 = 6.0
BLOCK = 16

LARGEST = LARGEST_E2M1 * LARGEST_E4M3
"""Largest value over the whole scale."""

_TILE = 1 << 18
"""Elements that are quantized at once."""

Blocks = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
"""Codes [K, N] of E2M1, scales [K / 16, N] of E4M3, and the whole's scale []."""


def quantize_blocks(weight: npt.NDArray[Any], scale_dtype: np.dtype[Any], name: str = "weight") -> Blocks:
    """`scale_dtype` is the dtype of the whole's scale. `name` is for the message.

    Raises QuantizationError when 16 does not divide K or a weight is not finite.
    """
    rows, columns = weight.shape
    if rows % BLOCK:
        raise QuantizationError(f"{name}: {rows} rows cannot be cut into blocks of {BLOCK}")
    peaks = np.empty((rows // BLOCK, columns), np.float32)
    step = max(1, _TILE // (BLOCK * columns))
    tops = range(0, len(peaks), step)
    for top in tops:
        tile = weight[top * BLOCK : (top + step) * BLOCK].astype(np.float32).reshape(-1, BLOCK, columns)
        peaks[top : top + step] = np.abs(tile).max(axis=1)
    if not np.isfinite(peaks).all():
        raise QuantizationError(f"{name}: holds NaN or infinity; the checkpoint is damaged")
    whole = scale_for(float(peaks.max()), scale_dtype, LARGEST)
    scales = (peaks / np.float32(LARGEST_E2M1) / whole.astype(np.float32)).clip(0, LARGEST_E4M3).astype(E4M3)
    used = scales.astype(np.float32) * whole.astype(np.float32)
    inverse = np.divide(np.float32(1), used, out=np.zeros_like(used), where=used > 0)
    codes = np.empty((len(peaks), BLOCK, columns), E2M1)
    for top in tops:
        tile = weight[top * BLOCK : (top + step) * BLOCK].astype(np.float32).reshape(-1, BLOCK, columns)
        tile *= inverse[top : top + step, None]
        codes[top : top + step] = np.clip(tile, -LARGEST_E2M1, LARGEST_E2M1, out=tile).astype(E2M1)
    return codes.reshape(rows, columns), scales, whole


def dequantize_blocks(quantized: Blocks) -> npt.NDArray[np.float32]:
    """The float32 matrix [K, N] that an engine computes with."""
    codes, scales, whole = quantized
    used = scales.astype(np.float32) * whole.astype(np.float32)
    value: npt.NDArray[np.float32] = codes.astype(np.float32) * np.repeat(used, BLOCK, axis=0)
    return value
