"""NVFP4: a float matrix [K, N] in, 4-bit float codes and scales of two levels out.

E2M1 codes (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) in blocks of 16 along K; each block has an
E4M3 scale, and one number scales them all: value = code * scale * whole. Round to nearest; which code
the largest weight of a block becomes is what gives the least squared error. Knows no graph.
Format: OCP Microscaling's E2M1 elements, with NVIDIA's blocks of 16 and E4M3 scales.
"""

from __future__ import annotations

from collections.abc import Iterator
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

_LEVELS_OF_THE_LARGEST = (6.0, 4.0, 5.0, 7.0)
"""Candidates. The steps below 6 are wide: a block may fare better with its largest weight at 4, where
neighbours are 1 apart; at 7 it is clipped. The first wins ties. (SmolLM2-135M, weights alone: KL 0.35 with
6 for all, 0.23 so.)"""

_TILE = 1 << 16
"""Elements that are quantized at once."""

Float = npt.NDArray[np.float32]
Blocks = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
"""Codes [K, N] of E2M1, scales [K / 16, N] of E4M3, and the whole's scale []."""


def quantize_blocks(
    weight: npt.NDArray[Any],
    scale_dtype: np.dtype[Any],
    name: str = "weight",
    importance: npt.NDArray[np.float32] | None = None,
) -> Blocks:
    """`scale_dtype` is the dtype of the whole's scale. `importance` [K]: how much an error in each row counts,
    None = all the same. `name` is for the message.

    Raises QuantizationError when 16 does not divide K or a weight is not finite.
    """
    rows, columns = weight.shape
    if rows % BLOCK:
        raise QuantizationError(f"{name}: {rows} rows cannot be cut into blocks of {BLOCK}")
    blocks = rows // BLOCK
    heft = np.ones((blocks, BLOCK, 1), np.float32) if importance is None else importance.reshape(-1, BLOCK, 1)
    step = max(1, _TILE // (BLOCK * columns))

    def tiles() -> Iterator[tuple[slice, Float]]:
        for top in range(0, blocks, step):
            tile = weight[top * BLOCK : (top + step) * BLOCK].astype(np.float32)
            yield slice(top, top + step), tile.reshape(-1, BLOCK, columns)

    peaks = np.empty((blocks, columns), np.float32)
    for at, tile in tiles():
        peaks[at] = np.abs(tile).max(axis=1)
    if not np.isfinite(peaks).all():
        raise QuantizationError(f"{name}: holds NaN or infinity; the checkpoint is damaged")
    whole = scale_for(float(peaks.max()), scale_dtype, LARGEST)
    codes = np.empty((blocks, BLOCK, columns), E2M1)
    scales = np.empty((blocks, columns), E4M3)
    for at, tile in tiles():
        codes[at], scales[at] = _best(tile, peaks[at], whole.astype(np.float32), heft[at])
    return codes.reshape(rows, columns), scales, whole


def _best(
    tile: Float, peaks: Float, whole: npt.NDArray[np.float32], heft: Float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Codes and scales of a tile [blocks, 16, columns] with the least weighted squared error."""
    best: tuple[Float, npt.NDArray[Any], npt.NDArray[Any]] | None = None
    for level in _LEVELS_OF_THE_LARGEST:
        scales = np.clip(peaks / np.float32(level) / whole, 0, LARGEST_E4M3).astype(E4M3)
        used = (scales.astype(np.float32) * whole)[:, None]
        codes = np.divide(tile, used, out=np.zeros_like(tile), where=used > 0)
        codes = np.clip(codes, -LARGEST_E2M1, LARGEST_E2M1, out=codes).astype(E2M1)
        off = codes.astype(np.float32) * used - tile
        error = np.einsum("kbn,kbn->kn", off * heft, off)
        if best is None:
            best = error, codes, scales
            continue
        better = error < best[0]
        best = (
            np.where(better, error, best[0]),
            np.where(better[:, None], codes, best[1]),
            np.where(better, scales, best[2]),
        )
    assert best is not None
    return best[1], best[2]


def dequantize_blocks(quantized: Blocks) -> npt.NDArray[np.float32]:
    """The float32 matrix [K, N] that an engine computes with."""
    codes, scales, whole = quantized
    used = scales.astype(np.float32) * whole.astype(np.float32)
    value: npt.NDArray[np.float32] = codes.astype(np.float32) * np.repeat(used, BLOCK, axis=0)
    return value
