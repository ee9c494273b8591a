"""The four numbers, against scipy-free definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_deploy.verification.measures import Comparison


def logits(seed: int, rows: int = 12, vocab: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, vocab)).astype(np.float32) * 3


def test_the_numbers_are_those_of_the_definitions() -> None:
    ours, theirs, following = logits(0), logits(1), np.arange(11)
    p = np.exp(ours.astype(np.float64)) / np.exp(ours.astype(np.float64)).sum(axis=1, keepdims=True)
    q = np.exp(theirs.astype(np.float64)) / np.exp(theirs.astype(np.float64)).sum(axis=1, keepdims=True)
    comparison = Comparison()
    comparison.add(ours.copy(), theirs.copy(), following)
    found = comparison.measures(0.25)
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-5)
    assert found.top1 == (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()
    rows = np.arange(11)
    loss = [-np.log(each[rows, following]).mean() for each in (p, q)]
    assert found.reference_perplexity == pytest.approx(math.exp(loss[0]), rel=1e-5)
    assert found.perplexity_ratio == pytest.approx(math.exp(loss[1] - loss[0]), rel=1e-5)
    assert found.tensor_error == 0.25
    assert found.positions == 12


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 11), max_size=4))
def test_how_the_text_is_cut_does_not_matter(cuts: list[int]) -> None:
    ours, theirs, following = logits(2), logits(3), np.arange(12)
    whole, pieces = Comparison(), Comparison()
    whole.add(ours.copy(), theirs.copy(), following)
    edges = sorted({0, 12, *cuts})
    for start, stop in itertools.pairwise(edges):
        pieces.add(ours[start:stop].copy(), theirs[start:stop].copy(), following[start:stop])
    assert pieces.measures(0).kl == pytest.approx(whole.measures(0).kl, rel=1e-6)
    assert pieces.measures(0).top1 == whole.measures(0).top1


def test_equal_models_are_at_zero_distance() -> None:
    comparison = Comparison()
    comparison.add(logits(0), logits(0), np.arange(11))
    found = comparison.measures(0)
    assert (found.kl, found.top1, found.perplexity_ratio) == (0, 1, 1)


def test_logits_far_apart_do_not_overflow() -> None:
    comparison = Comparison()
    comparison.add(logits(0) * 1e4, logits(1) * 1e4, np.arange(11))
    found = comparison.measures(0)
    assert math.isfinite(found.kl) and math.isfinite(found.perplexity_ratio)
