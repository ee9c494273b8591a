"""8-bit codes with a scale a column, in two factors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization.columns import Columns, dequantize, scale_for, to_e4m3, to_int8

F16 = np.dtype(np.float16)
Quantizer = Callable[..., Columns]
ERROR = {to_e4m3: 0.028, to_int8: 0.009}
"""Relative error of normally distributed weights."""
both = pytest.mark.parametrize("quantize", ERROR)


@both
def test_the_largest_weight_of_a_column_survives_and_the_rest_keeps_its_bits(quantize: Quantizer) -> None:
    weight = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
    weight *= np.exp(np.random.default_rng(1).normal(size=20))
    back = dequantize(quantize(weight, F16))
    assert np.isfinite(back).all()
    assert np.allclose(np.abs(back).max(axis=0), np.abs(weight).max(axis=0), rtol=2e-3)
    assert np.linalg.norm(back - weight) < ERROR[quantize] * np.linalg.norm(weight)
    assert (np.linalg.norm(back - weight, axis=0) < 1.2 * ERROR[quantize] * np.linalg.norm(weight, axis=0)).all()


@both
def test_what_a_gemm_writes_before_the_columns_are_scaled_is_no_larger_than_its_result(
    quantize: Quantizer,
) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 200)).astype(np.float32)
    assert (quantize(weight, F16)[2] >= 0.999).all()


@both
def test_weights_too_small_for_an_fp16_scale_are_kept(quantize: Quantizer) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32) * 1e-4
    assert np.linalg.norm(dequantize(quantize(weight, F16)) - weight) < 0.06 * np.linalg.norm(weight)


@both
def test_a_column_that_is_far_weaker_than_the_rest_keeps_its_digits(quantize: Quantizer) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    weight[:, 2] *= 1e-5
    back = dequantize(quantize(weight, F16))
    assert np.linalg.norm(back[:, 2] - weight[:, 2]) < 0.06 * np.linalg.norm(weight[:, 2])


@both
def test_a_column_of_zeros_stays_zero(quantize: Quantizer) -> None:
    for weight in (np.zeros((8, 2), np.float32), np.eye(8, dtype=np.float32)[:, :2] * [1, 0]):
        codes, scale, factors = quantize(weight, F16)
        assert not dequantize((codes, scale, factors))[:, 1].any()
        assert scale > 0
        assert (factors > 0).all()


@both
def test_weights_near_the_end_of_fp32_become_codes_and_not_nan(quantize: Quantizer) -> None:
    weight = np.ones((8, 3), np.float32) * np.asarray([1, 1e-39, 1e-44], np.float32)
    for each in (weight, weight[:, 1:]):
        with np.errstate(over="raise", invalid="raise"):
            codes, scale, factors = quantize(each, np.dtype(np.float32))
        assert np.isfinite(dequantize((codes, scale, factors))).all()


def test_minus_128_is_not_used() -> None:
    codes, _, _ = to_int8(np.asarray([[-1.0, 1.0], [0.3, -0.999]], np.float32), F16)
    assert codes.min() == -127
    assert codes.max() == 127


@both
def test_a_weight_that_is_not_finite_is_refused(quantize: Quantizer) -> None:
    with pytest.raises(QuantizationError, match="damaged"):
        quantize(np.asarray([[1.0, np.nan]], np.float32), F16)


def test_an_activation_scale_maps_the_peak_to_the_largest_code() -> None:
    assert float(scale_for(448.0, F16, 448)) == 1.0
    assert float(scale_for(0.0, F16, 448)) > 0
