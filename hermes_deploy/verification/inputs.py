"""What quantization does to the input of a linear: to codes and back, in float32 numpy. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.quantization.columns import E4M3, LARGEST_E4M3
from hermes_deploy.quantization.nvfp4 import BLOCK, E2M1, LARGEST_E2M1

Float = npt.NDArray[np.float32]

InputCodes = Callable[[Float], Float]
"""Inputs [n, K] as they came -> as the linear really reads them."""

STATIC_CODES = (np.dtype(np.int8), np.dtype(np.uint8), E4M3)


@dataclass(frozen=True)
class StaticCodes:
    """QuantizeLinear and DequantizeLinear: value = (code - zero) * scale, codes of one of STATIC_CODES,
    rounded to the nearest, ties to even, held within their range. One scale, or one a column."""

    scale: Float
    zero: Float
    dtype: np.dtype[Any]

    def __call__(self, inputs: Float) -> Float:
        steps = inputs / self.scale
        if self.dtype == E4M3:
            codes = np.clip(steps, -LARGEST_E4M3, LARGEST_E4M3).astype(E4M3).astype(np.float32)
        else:
            info = np.iinfo(self.dtype)
            codes = np.clip(np.rint(steps) + self.zero, float(info.min), float(info.max)) - self.zero
        value: Float = codes * self.scale
        return value


@dataclass(frozen=True)
class BlockCodes:
    """NVFP4: 4-bit floats in blocks of 16 along K, each with an E4M3 scale that is found from its largest
    value; `whole` scales the scales."""

    whole: float

    def __call__(self, inputs: Float) -> Float:
        blocked = inputs.reshape(len(inputs), -1, BLOCK)
        peaks = np.abs(blocked).max(axis=2, keepdims=True)
        stored = np.minimum(peaks / np.float32(LARGEST_E2M1 * self.whole), LARGEST_E4M3).astype(E4M3)
        scale = stored.astype(np.float32) * np.float32(self.whole)
        steps = blocked / np.where(scale > 0, scale, np.float32(1))
        codes = np.clip(steps, -LARGEST_E2M1, LARGEST_E2M1).astype(E2M1).astype(np.float32)
        value: Float = (codes * scale).reshape(inputs.shape)
        return value
