"""Activation-aware scales for 4-bit blocks (AWQ, Lin et al., arXiv:2306.00978).

A few inputs of a linear are far larger than the rest, and the rounding of their weights is what its
output suffers from. Multiplying these weights by `s` before rounding and dividing the inputs by it
(see `equalize`) makes their errors smaller and the others' larger. s = (mean |x|)^share; the share is
searched for the least error of the output on calibration inputs, with the very rounding that the
target will get. Clipping is searched inside that rounding, block by block (see `blocks`). Pure.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hermes_deploy.quantization.blocks import BlockForm, dequantize_blocks, quantize_blocks

Float = npt.NDArray[np.float32]

SHARES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
"""Candidates; 0 is no scaling at all."""

_POSITIONS = 384
"""Of the inputs, evenly spaced: a bound on time."""


def search_scale(columns: Float, inputs: Float, magnitude: Float, form: BlockForm, name: str) -> Float:
    """The scale [K] of a linear: some of its `columns` [K, n], `inputs` [positions, K], `magnitude` [K].

    Its geometric mean is 1. Ties go to the smaller share.
    """
    seen = np.ascontiguousarray(inputs[:: max(1, len(inputs) // _POSITIONS)])
    power = np.einsum("pk,pk->k", inputs, inputs) / np.float32(len(inputs))
    best, least, worse = np.ones(len(magnitude), dtype=np.float32), np.inf, 0
    for share in SHARES:
        scale = scale_of(magnitude, share)
        found = quantize_blocks(columns * scale[:, None], form, name, power / (scale * scale))
        off = dequantize_blocks(found, form, len(columns))
        off /= scale[:, None]
        off -= columns
        error = float(np.square(seen @ off).sum(dtype=np.float64))
        if error < least:
            best, least, worse = scale, error, 0
        else:
            worse += 1
        if worse == 2:  # the error falls and then rises; what is left is farther off
            break
    return best


def scale_of(magnitude: Float, share: float) -> Float:
    """magnitude^share with geometric mean 1. Inputs that hardly ever move count as a thousandth of the mean."""
    steady = np.maximum(magnitude, np.float32(1e-3) * magnitude.mean() + np.finfo(np.float32).tiny)
    exponent = np.float32(share) * np.log(steady)
    scale: Float = np.exp(exponent - exponent.mean()).astype(np.float32)
    return scale
