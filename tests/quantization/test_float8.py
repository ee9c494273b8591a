"""FP8 columns."""

from __future__ import annotations

import numpy as np
import pytest

from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization.float8 import dequantize_columns, quantize_columns, scale_for

F16 = np.dtype(np.float16)


def test_the_largest_weight_of_a_column_survives_and_the_rest_keeps_three_bits() -> None:
    weight = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
    codes, scales = quantize_columns(weight, F16)
    back = dequantize_columns(codes, scales)
    assert np.isfinite(back).all()
    assert np.allclose(np.abs(back).max(axis=0), np.abs(weight).max(axis=0), rtol=2e-3)
    assert np.linalg.norm(back - weight) < 0.028 * np.linalg.norm(weight)


def test_weights_too_small_for_an_fp16_scale_are_kept() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32) * 1e-4
    codes, scales = quantize_columns(weight, F16)
    assert np.linalg.norm(dequantize_columns(codes, scales) - weight) < 0.06 * np.linalg.norm(weight)


def test_a_column_of_zeros_stays_zero() -> None:
    codes, scales = quantize_columns(np.zeros((8, 2), np.float32), F16)
    assert not dequantize_columns(codes, scales).any()
    assert (scales > 0).all()


def test_a_weight_that_is_not_finite_is_refused() -> None:
    with pytest.raises(QuantizationError, match="damaged"):
        quantize_columns(np.asarray([[1.0, np.nan]], np.float32), F16)


def test_an_activation_scale_maps_the_peak_to_the_largest_fp8_number() -> None:
    assert float(scale_for(448.0, F16)) == 1.0
    assert float(scale_for(0.0, F16)) > 0
