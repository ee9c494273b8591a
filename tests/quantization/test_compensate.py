"""Rounding errors that make up for each other."""

from __future__ import annotations

import numpy as np
import pytest

from hermes_deploy.quantization.blocks import BlockForm, Float, dequantize_blocks, quantize_blocks
from hermes_deploy.quantization.compensate import RANK, coupling, directions

FORM = BlockForm(4, symmetric=False, block_size=32, scale_dtype=np.dtype(np.float32))


def correlated(positions: int, width: int, seed: int = 0) -> Float:
    rng = np.random.default_rng(seed)
    together = np.random.default_rng(99).standard_normal((8, width)) * 2  # the same for every seed
    return (rng.standard_normal((positions, 8)) @ together + rng.standard_normal((positions, width))).astype(np.float32)


def power(inputs: Float) -> Float:
    return np.square(inputs).mean(axis=0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 128])
def test_a_linear_with_correlated_inputs_answers_nearer_to_the_original(block: int, symmetric: bool) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((256, 96)).astype(np.float32)
    seen, unseen = correlated(1000, 256), correlated(300, 256, seed=5)
    form = BlockForm(4, symmetric, block, np.dtype(np.float32))

    def error(found: Float | None) -> float:
        codes = quantize_blocks(weight, form, importance=power(seen), directions=found)
        return float(np.square(unseen @ (dequantize_blocks(codes, form, 256) - weight)).mean())

    assert error(directions(seen)) < 0.4 * error(None)


def test_inputs_that_do_not_move_together_are_rounded_as_well_as_alone() -> None:
    weight = np.random.default_rng(1).standard_normal((256, 48)).astype(np.float32)
    even = np.ones(256, np.float32)

    def error(found: Float | None) -> float:
        codes = quantize_blocks(weight, FORM, importance=even, directions=found)
        return float(np.square(dequantize_blocks(codes, FORM, 256) - weight).sum())

    assert error(np.zeros((256, RANK), np.float32)) <= error(None)


def test_the_directions_of_few_factors_are_found_whole() -> None:
    rng = np.random.default_rng(2)
    inputs = (rng.standard_normal((500, 5)) @ rng.standard_normal((5, 100))).astype(np.float32)
    found = directions(inputs)
    assert found.shape == (100, RANK)
    np.testing.assert_allclose(found @ found.T, inputs.T @ inputs / 500, atol=1e-3)


def test_what_is_handed_on_is_the_best_answer_to_an_error() -> None:
    """Against the formula with the whole matrix: -H_RR^-1 H_Rk, R all inputs after k."""
    inputs = correlated(400, 24)
    found = directions(inputs)
    seen = power(inputs)
    pairs = coupling(seen, found)
    rest = np.maximum(seen - np.square(found).sum(axis=1), 0) + 0.02 * seen.mean()
    whole = np.diag(rest) + found @ found.T
    for k in (0, 7, 22):
        wanted = np.linalg.solve(whole[k + 1 :, k + 1 :], whole[k + 1 :, k])
        np.testing.assert_allclose(pairs.respond[k + 1 :] @ pairs.carry[k], wanted, rtol=1e-3, atol=1e-4)


def test_more_columns_than_one_strip_are_all_rounded_the_same_way() -> None:
    weight = np.random.default_rng(3).standard_normal((64, 40)).astype(np.float32)
    inputs = correlated(200, 64)
    kwargs = {"importance": power(inputs), "directions": directions(inputs)}
    one = dequantize_blocks(quantize_blocks(weight, FORM, **kwargs), FORM, 64)
    many = dequantize_blocks(quantize_blocks(np.tile(weight, (1, 60)), FORM, **kwargs), FORM, 64)
    np.testing.assert_allclose(many, np.tile(one, (1, 60)), rtol=1e-5)


def test_the_same_inputs_have_the_same_directions() -> None:
    inputs = correlated(200, 64)
    assert directions(inputs).tobytes() == directions(inputs.copy()).tobytes()
