"""NVFP4 weights: laws that hold for any matrix."""

from __future__ import annotations

import numpy as np
import pytest

from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization.nvfp4 import E2M1, dequantize_blocks, quantize_blocks

F16 = np.dtype(np.float16)


def normal(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


def test_normally_distributed_weights_lose_a_tenth_and_no_more() -> None:
    weight = normal(512, 48)
    assert np.linalg.norm(dequantize_blocks(quantize_blocks(weight, F16)) - weight) < 0.1 * np.linalg.norm(weight)


def test_weights_that_are_codes_come_back_as_they_were() -> None:
    levels = np.arange(16, dtype=np.uint8).view(E2M1).astype(np.float32)
    weight = np.tile(levels[:, None], (2, 3)) * np.float32([0.25, 1, 4]) * np.float32(2.0**-10)
    assert np.allclose(dequantize_blocks(quantize_blocks(weight, F16)), weight, rtol=0.07, atol=0)


def test_blocks_of_very_different_size_keep_their_digits() -> None:
    weight = normal(64, 8)
    weight[16:32] *= 1e-3
    back = dequantize_blocks(quantize_blocks(weight, F16))
    for block in (slice(0, 16), slice(16, 32)):
        assert np.linalg.norm(back[block] - weight[block]) < 0.13 * np.linalg.norm(weight[block])


def test_importance_moves_the_error_to_inputs_that_matter_less() -> None:
    weight, importance = normal(256, 64), np.exp(np.random.default_rng(1).normal(size=256) * 3).astype(np.float32)

    def error(how: np.ndarray | None) -> float:
        off = dequantize_blocks(quantize_blocks(weight, F16, importance=how)) - weight
        return float((importance[:, None] * off**2).sum())

    assert error(importance) < 0.9 * error(None)


def test_what_is_zero_stays_zero() -> None:
    weight = normal(32, 4)
    weight[:16] = 0
    assert not dequantize_blocks(quantize_blocks(weight, F16))[:16].any()
    assert not dequantize_blocks(quantize_blocks(np.zeros((16, 2), np.float32), F16)).any()


def test_a_weight_that_is_not_finite_is_refused() -> None:
    with pytest.raises(QuantizationError, match="damaged"):
        quantize_blocks(np.full((16, 1), np.inf, np.float32), F16)


def test_rows_that_blocks_do_not_divide_are_refused() -> None:
    with pytest.raises(QuantizationError, match="24 rows cannot be cut into blocks of 16"):
        quantize_blocks(normal(24, 2), F16)
