"""What is drawn obeys temperature, top-k and top-p, and depends on nothing but the row and its seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.sampling import Sampling, pick


def rows(count: int, vocab: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, (count, vocab)).astype(np.float32)


def draw(logits: npt.NDArray[np.float32], sampling: Sampling, times: int) -> list[int]:
    """`times` tokens drawn from one row [vocab] with one generator."""
    generator = sampling.generator()
    return [int(pick(logits[None], [sampling], [generator])[0]) for _ in range(times)]


def nucleus(logits: npt.NDArray[np.float32], sampling: Sampling) -> set[int]:
    """The tokens that may be drawn, the plain way."""
    weights = np.exp((logits - logits.max()).astype(np.float64) / sampling.temperature)
    order = np.argsort(-weights, kind="stable")[: sampling.top_k or len(weights)]
    share = np.cumsum(weights[order]) / weights[order].sum()
    return set(order[: int((share < sampling.top_p).sum()) + 1].tolist())


def test_temperature_zero_takes_the_largest() -> None:
    logits = rows(5, 300)
    greedy = [Sampling()] * 5
    assert pick(logits, greedy, [s.generator() for s in greedy]).tolist() == logits.argmax(axis=1).tolist()


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.sampled_from([2, 50, 300, 1000]),
    seed=st.integers(0, 1000),
    temperature=st.floats(0.2, 3),
    top_k=st.one_of(st.just(0), st.integers(1, 1200)),
    top_p=st.floats(0.05, 1),
)
def test_only_tokens_of_the_nucleus_are_drawn(
    vocab: int, seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = rows(1, vocab, seed)[0]
    sampling = Sampling(temperature, top_k, top_p, seed)
    # one more candidate forgives float32 against float64 at the edge of top_p
    loose = Sampling(temperature, top_k, min(1.0, top_p + 1e-5), seed)
    assert set(draw(logits, sampling, 40)) <= nucleus(logits, loose)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.8), (6, 0.9)])
def test_tokens_come_as_often_as_their_probability(top_k: int, top_p: float) -> None:
    logits = rows(1, 40)[0]
    sampling = Sampling(1.5, top_k, top_p, seed=1)
    allowed = sorted(nucleus(logits, sampling))
    weights = np.exp((logits[allowed] - logits.max()) / 1.5)
    counts = np.bincount(draw(logits, sampling, 4000), minlength=40)[allowed]
    assert np.abs(counts / 4000 - weights / weights.sum()).max() < 0.03


def test_the_same_seed_draws_the_same_and_another_seed_something_else() -> None:
    logits = rows(1, 500)[0]
    assert draw(logits, Sampling(1.0, seed=3), 20) == draw(logits, Sampling(1.0, seed=3), 20)
    assert draw(logits, Sampling(1.0, seed=3), 20) != draw(logits, Sampling(1.0, seed=4), 20)
    assert draw(logits, Sampling(1.0), 20) != draw(logits, Sampling(1.0), 20)


def test_what_else_is_in_the_batch_changes_nothing() -> None:
    logits = rows(4, 1000)
    mixed = [Sampling(0.8, 0, 0.9, 1), Sampling(), Sampling(2.0, 900, 1.0, 3), Sampling(1.2, 0, 1.0, 4)]
    together = pick(logits, mixed, [s.generator() for s in mixed]).tolist()
    alone = [int(pick(logits[i : i + 1], [s], [s.generator()])[0]) for i, s in enumerate(mixed)]
    assert together == alone


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_told_apart(bad: float) -> None:
    logits = rows(3, 50)
    logits[1, 7] = bad
    drawn = [Sampling(1.0, seed=1)] * 3
    ids = pick(logits, drawn, [s.generator() for s in drawn])
    assert ids[1] == -1
    assert (ids[[0, 2]] >= 0).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
)
def test_a_value_out_of_range_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Sampling(**values)  # type: ignore[arg-type]
