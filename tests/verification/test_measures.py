"""The numbers, against scipy-free definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_deploy.verification.measures import Comparison, compare_rows, histogram


def logits(seed: int, rows: int = 12, vocab: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, vocab)).astype(np.float32) * 3


def test_the_numbers_are_those_of_the_definitions() -> None:
    ours, theirs, following = logits(0), logits(1), np.arange(11)
    theirs[::2] = ours[::2] + 0.1 * theirs[::2]
    p = np.exp(ours.astype(np.float64)) / np.exp(ours.astype(np.float64)).sum(axis=1, keepdims=True)
    q = np.exp(theirs.astype(np.float64)) / np.exp(theirs.astype(np.float64)).sum(axis=1, keepdims=True)
    comparison = Comparison(1)
    comparison.add(0, 0, ours.copy(), theirs.copy(), following)
    found = comparison.measures(0.25)
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-5)
    same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    best, second = np.sort(ours, axis=1)[:, :-3:-1].T
    confident = best - second > 0.5
    assert found.top1 == same.mean()
    assert 0 < found.confident_positions == confident.sum() < 12
    assert found.top1_confident == same[confident].mean()
    rows = np.arange(11)
    loss = [-np.log(each[rows, following]).mean() for each in (p, q)]
    assert found.reference_perplexity == pytest.approx(math.exp(loss[0]), rel=1e-5)
    assert found.perplexity_ratio == pytest.approx(math.exp(loss[1] - loss[0]), rel=1e-5)
    assert found.tensor_error == 0.25
    assert found.positions == 12
    worst = comparison.worst[0]
    assert worst.position == (p * np.log(p / q)).sum(axis=1).argmax()
    assert worst.reference[0] == (ours[worst.position].argmax(), pytest.approx(p[worst.position].max(), abs=1e-6))
    assert worst.candidate[0] == (theirs[worst.position].argmax(), pytest.approx(q[worst.position].max(), abs=1e-6))


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 11), max_size=4))
def test_how_the_text_is_cut_does_not_matter(cuts: list[int]) -> None:
    ours, theirs, following = logits(2), logits(3), np.arange(12)
    whole, pieces = Comparison(1), Comparison(1)
    whole.add(0, 0, ours.copy(), theirs.copy(), following)
    edges = sorted({0, 12, *cuts})
    for start, stop in itertools.pairwise(edges):
        pieces.add(0, start, ours[start:stop].copy(), theirs[start:stop].copy(), following[start:stop])
    assert pieces.measures(0).kl == pytest.approx(whole.measures(0).kl, rel=1e-6)
    assert pieces.measures(0).top1 == whole.measures(0).top1
    assert pieces.worst == whole.worst
    assert pieces.kl_by_position().tolist() == whole.kl_by_position().tolist()


def test_equal_models_are_at_zero_distance() -> None:
    comparison = Comparison(1)
    comparison.add(0, 0, logits(0), logits(0), np.arange(11))
    found = comparison.measures(0)
    assert (found.kl, found.top1, found.top1_confident, found.perplexity_ratio) == (0, 1, 1, 1)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_a_tiny_difference_keeps_its_digits(shift: float) -> None:
    ours = np.round(logits(0, rows=4, vocab=5000) * 1024) / 1024
    theirs = ours + np.round(logits(1, rows=4, vocab=5000)) / 1024
    wide, narrow = ours.astype(np.float64), theirs.astype(np.float64)
    log_p = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    log_q = narrow - np.log(np.exp(narrow).sum(axis=1, keepdims=True))
    exact = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    assert exact.max() < 1e-4
    found = compare_rows(ours, theirs + np.float32(shift), np.arange(0))
    assert found.kl == pytest.approx(exact, rel=0.02, abs=1e-9)


def test_logits_far_apart_do_not_overflow() -> None:
    comparison = Comparison(1)
    comparison.add(0, 0, logits(0) * 1e4, logits(1) * 1e4, np.arange(11))
    found = comparison.measures(0)
    assert math.isfinite(found.kl) and math.isfinite(found.perplexity_ratio)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_no_number_shows_in_its_own_row(bad: float) -> None:
    theirs = logits(1)
    theirs[5, 7] = bad
    found = compare_rows(logits(0), theirs, np.arange(11))
    assert np.flatnonzero(~np.isfinite(found.kl)).tolist() == [5]


def test_every_position_is_in_the_histogram_once() -> None:
    kl = np.array([-1e-9, 0.0, 1e-6, 0.0015, 0.0015, 3.0, 500.0])
    bins = histogram(kl)
    assert sum(count for _, count in bins) == len(kl)
    assert bins[0] == (1e-6, 3)
    assert (0.001, 2) in bins
    assert bins[-1] == (100.0, 1)


def of_chats(chats: int, positions: int, spread: float) -> Comparison:
    """Chats that differ from one another: the candidate is further off in some than in others."""
    comparison = Comparison(chats)
    for chat in range(chats):
        ours, noise = logits(chat, positions), logits(1000 + chat, positions)
        comparison.add(chat, 0, ours, ours + noise * (0.1 + spread * (chat % 5)), np.arange(positions - 1) % 50)
    return comparison


def test_intervals_hold_the_value_and_are_the_same_every_time() -> None:
    comparison = of_chats(20, 30, 0.1)
    found, again = comparison.intervals(), comparison.intervals()
    assert found == again
    assert set(found) == {"kl", "top1", "top1_confident", "perplexity_ratio"}
    for name, (low, high) in found.items():
        assert low <= getattr(comparison.measures(0), name) <= high
        assert low < high


def test_many_positions_of_few_chats_are_worth_less_than_of_many_chats() -> None:
    def width(comparison: Comparison) -> float:
        low, high = comparison.intervals()["kl"]
        return high - low

    assert width(of_chats(5, 240, 0.1)) > 2 * width(of_chats(60, 20, 0.1))


def test_of_one_chat_there_is_no_interval_instead_of_one_that_looks_certain() -> None:
    assert of_chats(1, 240, 0.1).intervals() == {}
    assert set(of_chats(2, 30, 0.1).intervals()) == {"kl", "top1", "top1_confident", "perplexity_ratio"}
