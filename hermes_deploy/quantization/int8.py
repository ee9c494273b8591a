"""INT8, symmetric: a float matrix [K, N] in, codes -127..127 and one scale a column out.

Values are code * scale with scale = max|w| / 127. -128 is left out, so that the negative of every
code is one. Knows no graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.quantization.float8 import column_peaks, pieces, scale_for

LARGEST = 127.0


def quantize_columns(
    weight: npt.NDArray[Any], scale_dtype: np.dtype[Any], name: str = "weight"
) -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
    """Codes int8 [K, N] and scales [N] of `scale_dtype`.

    Raises QuantizationError when a weight is not finite. `name` is for the message.
    """
    scales = scale_for(column_peaks(weight, name), scale_dtype, LARGEST)
    inverse = np.float32(1) / scales.astype(np.float32)
    codes = np.empty(weight.shape, dtype=np.int8)
    for top, piece in pieces(weight):
        scaled = piece * inverse
        np.rint(scaled, out=scaled)
        np.clip(scaled, -LARGEST, LARGEST, out=scaled)
        codes[top : top + len(scaled)] = scaled
    return codes, scales
