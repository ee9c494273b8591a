"""The probabilities that `pick` draws by are those of transformers' own processors, from the same logits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from hermes_deploy.runtime.sampling import Sampling
from hermes_deploy.runtime.sampling.distribution import distribution, draw, draw_near
from hermes_deploy.runtime.sampling.picking import Sampler, pick

Row = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float64]
PROMPT = np.array([1, 0, 1, 2], dtype=np.int64)
NUDGES = (0.0, 1e-6, -1e-6, 1e-5, -1e-5)
"""Where a sum of float32 meets a limit, one token is kept or not by rounding: either is right."""


def processed_by(sampler: Sampler, row: Row) -> Row:
    processed = row.copy()
    sampler.process(processed)
    return processed


def ours(processed: Row, sampler: Sampler) -> Probabilities:
    """[vocab], of the weights by which `pick` draws."""
    ids, weights = distribution(processed, float(processed.max()), sampler.sampling)
    probabilities = np.zeros(len(processed))
    probabilities[slice(None) if ids is None else ids] = weights
    return probabilities / probabilities.sum()


def transformers_chain(s: Sampling, answer: list[int], stop_ids: list[int], min_tokens: int) -> list[Any]:
    """As GenerationMixin._get_logits_processor puts them one after another."""
    chain: list[Any] = []
    if s.logit_bias:
        chain.append(theirs.SequenceBiasLogitsProcessor([[[token], float(value)] for token, value in s.logit_bias]))
    if s.repetition_penalty != 1:
        chain.append(theirs.RepetitionPenaltyLogitsProcessor(float(s.repetition_penalty)))
    if s.presence_penalty or s.frequency_penalty:
        chain.append(openai_penalties(s, answer))
    if s.bad_words:
        chain.append(theirs.NoBadWordsLogitsProcessor([list(word) for word in s.bad_words]))
    if min_tokens:
        chain.append(theirs.MinNewTokensLengthLogitsProcessor(len(PROMPT), min_tokens, stop_ids))
    chain.append(theirs.TemperatureLogitsWarper(float(s.temperature)))
    if s.top_k:
        chain.append(theirs.TopKLogitsWarper(s.top_k))
    if s.top_p < 1:
        chain.append(theirs.TopPLogitsWarper(s.top_p))
    if s.min_p > 0:
        chain.append(theirs.MinPLogitsWarper(s.min_p))
    if s.typical_p < 1:
        chain.append(theirs.TypicalLogitsWarper(s.typical_p))
    return chain


def openai_penalties(s: Sampling, answer: list[int]) -> Any:
    """The formula of OpenAI's API reference; transformers has none."""

    def apply(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        count = torch.bincount(torch.tensor(answer, dtype=torch.long), minlength=scores.shape[1])
        return scores - s.presence_penalty * (count > 0).float() - s.frequency_penalty * count.float()

    return apply


def theirs_of(
    row: Row, s: Sampling, answer: list[int], stop_ids: list[int], min_tokens: int, limits_in: torch.dtype
) -> Probabilities:
    """[vocab]; `limits_in`: the dtype of the logits from the temperature on."""
    scores = torch.from_numpy(row.copy())[None]
    tokens = torch.tensor([[*PROMPT.tolist(), *answer]])
    for step in transformers_chain(s, answer, stop_ids, min_tokens):
        scores = step(tokens, scores)
        if isinstance(step, theirs.TemperatureLogitsWarper):
            scores = scores.to(limits_in)
    return np.asarray(torch.softmax(scores.double(), dim=-1)[0].numpy())


def nudged(s: Sampling) -> list[Sampling]:
    """`s`, and the same with its limits moved by what float32 cannot tell."""

    def around(value: float, off: float) -> list[float]:
        return [value] if value == off else [min(max(value * (1 + n), 1e-9), 1 - 1e-12) for n in NUDGES]

    limits = itertools.product(around(s.top_p, 1), around(s.min_p, 0), around(s.typical_p, 1))
    fields = {name: getattr(s, name) for name in s.__dataclass_fields__}
    return [Sampling(**{**fields, "top_p": p, "min_p": m, "typical_p": t}) for p, m, t in limits]


def assert_same(
    row: Row, s: Sampling, answer: list[int] | None = None, stop_ids: list[int] | None = None, min_tokens: int = 0
) -> None:
    answer, stop_ids = answer or [], stop_ids or []
    sampler = Sampler(s, PROMPT, len(row), stop_ids=frozenset(stop_ids), min_tokens=min_tokens)
    for token in answer:
        sampler.record(token)
    processed = processed_by(sampler, row)
    got = ours(processed, sampler)
    off = np.abs(got - theirs_of(row, s, answer, stop_ids, min_tokens, torch.float32)).max()
    if off > 1e-6:
        # which of equal logits top_p keeps is up to torch's sort: they are compared as a group
        scaled = processed / np.float32(s.temperature)

        def grouped(probabilities: Probabilities) -> Probabilities:
            return probabilities[np.lexsort((probabilities, scaled))]

        # and typical_p of nearly equal logits is by the rounding of float32, so float64 counts too
        near = [
            theirs_of(row, n, answer, stop_ids, min_tokens, dtype)
            for n in nudged(s)
            for dtype in (torch.float32, torch.float64)
        ]
        off = min(np.abs(grouped(got) - grouped(p)).max() for p in near)
    assert off <= 1e-6, f"{s} is {off:.3g} off transformers"


def made(kind: str, vocab: int, seed: int) -> Row:
    random = np.random.default_rng(seed)
    rows = {
        "like a model": lambda: random.normal(-2, 3, vocab) + 12 * (random.random(vocab) < 5 / vocab),
        "normal": lambda: random.normal(0, 3, vocab),
        "ties": lambda: random.integers(-3, 4, vocab),
        "flat": lambda: np.full(vocab, -1.25),
        "nearly flat": lambda: random.normal(5, 1e-3, vocab),
        "huge spread": lambda: random.normal(0, 1e4, vocab),
        "enormous": lambda: random.normal(0, 1e30, vocab),
        "one alone": lambda: np.where(np.arange(vocab) == seed % vocab, 80.0, -80.0),
        "far from zero": lambda: random.normal(-300, 2, vocab),
        "with -inf": lambda: np.where(random.random(vocab) < 0.5, -np.inf, random.normal(0, 3, vocab)),
    }
    row = rows[kind]().astype(np.float32)
    row[seed % vocab] = max(row[seed % vocab], np.float32(0.5))  # never all -inf
    return row


KINDS = [
    "like a model", "normal", "ties", "flat", "nearly flat", "huge spread",
    "enormous", "one alone", "far from zero", "with -inf",
]  # fmt: skip
VOCABS = st.sampled_from([5, 50, 333, 1000, 5003])
ROWS = st.builds(made, st.sampled_from(KINDS), VOCABS, st.integers(0, 10_000))
TEMPERATURES = st.one_of(st.sampled_from([0.2, 0.7, 1.0, 2.0]), st.floats(0.05, 5))
TOP_KS = st.one_of(st.sampled_from([1, 2, 40, 6000]), st.integers(1, 400))
SHARES = st.one_of(st.sampled_from([0.5, 0.75, 0.9, 0.95, 0.999]), st.floats(0.001, 0.9999))
MIN_PS = st.one_of(st.sampled_from([1.0, 0.5, 0.05]), st.floats(1e-4, 1))


@settings(max_examples=60, deadline=None)
@given(row=ROWS, temperature=TEMPERATURES)
def test_temperature_alone_is_that_of_transformers(row: Row, temperature: float) -> None:
    assert_same(row, Sampling(temperature))


@settings(max_examples=100, deadline=None)
@given(row=ROWS, temperature=TEMPERATURES, top_k=TOP_KS)
def test_top_k_is_that_of_transformers_with_equal_logits_kept(row: Row, temperature: float, top_k: int) -> None:
    assert_same(row, Sampling(temperature, top_k=top_k))


@settings(max_examples=200, deadline=None)
@given(row=ROWS, temperature=TEMPERATURES, top_p=SHARES)
def test_top_p_is_that_of_transformers(row: Row, temperature: float, top_p: float) -> None:
    assert_same(row, Sampling(temperature, top_p=top_p))


@settings(max_examples=100, deadline=None)
@given(row=ROWS, temperature=TEMPERATURES, min_p=MIN_PS)
def test_min_p_is_that_of_transformers(row: Row, temperature: float, min_p: float) -> None:
    assert_same(row, Sampling(temperature, min_p=min_p))


@settings(max_examples=100, deadline=None)
@given(row=ROWS, temperature=TEMPERATURES, typical_p=SHARES)
def test_typical_p_is_that_of_transformers(row: Row, temperature: float, typical_p: float) -> None:
    assert_same(row, Sampling(temperature, typical_p=typical_p))


@settings(max_examples=150, deadline=None)
@given(
    row=ROWS,
    temperature=TEMPERATURES,
    top_k=st.one_of(st.just(0), TOP_KS),
    top_p=st.one_of(st.just(1.0), SHARES),
    min_p=st.one_of(st.just(0.0), MIN_PS),
    typical_p=st.one_of(st.just(1.0), SHARES),
)
def test_all_limits_together_are_those_of_transformers(
    row: Row, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float
) -> None:
    assert_same(row, Sampling(temperature, top_k, top_p, min_p=min_p, typical_p=typical_p))


IDS = st.integers(0, 4)
PENALTIES = {
    "repetition": st.builds(lambda p: {"repetition_penalty": p}, st.floats(0.5, 3)),
    "presence and frequency": st.builds(
        lambda p, f: {"presence_penalty": p, "frequency_penalty": f}, st.floats(-2, 2), st.floats(-2, 2)
    ),
    "biases": st.builds(
        lambda pairs: {"logit_bias": tuple(pairs.items())}, st.dictionaries(IDS, st.floats(-100, 100), min_size=1)
    ),
    # token 4 stays: something must be allowed
    "bad words": st.builds(
        lambda words: {"bad_words": tuple(words)},
        st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6, unique=True),
    ),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_each_penalty_alone_is_that_of_transformers(name: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(row=ROWS, answer=st.lists(IDS, max_size=6), penalty=PENALTIES[name])
    def check(row: Row, answer: list[int], penalty: dict[str, Any]) -> None:
        row[4] = max(row[4], np.float32(0.25))
        assert_same(row, Sampling(1.0, **penalty), answer)

    check()


@settings(max_examples=120, deadline=None)
@given(
    row=ROWS,
    answer=st.lists(IDS, max_size=6),
    some=st.tuples(*PENALTIES.values()),
    limits=st.sampled_from([{}, {"top_p": 0.9}, {"top_k": 3}, {"top_k": 40, "top_p": 0.95, "min_p": 0.05}]),
    temperature=TEMPERATURES,
    min_tokens=st.integers(0, 5),
)
def test_penalties_and_limits_together_are_those_of_transformers(
    row: Row,
    answer: list[int],
    some: tuple[dict[str, Any], ...],
    limits: dict[str, Any],
    temperature: float,
    min_tokens: int,
) -> None:
    row[4] = max(row[4], np.float32(0.25))
    fields = {name: value for part in some for name, value in part.items()}
    assert_same(row, Sampling(temperature, **fields, **limits), answer, [3], min_tokens)


@pytest.mark.parametrize("kind", ["like a model", "normal", "nearly flat"])
@pytest.mark.parametrize(
    "s",
    [
        Sampling(0.7, top_p=0.95),
        Sampling(0.2, top_p=0.9),
        Sampling(1.0, top_p=0.95),
        Sampling(2.0, top_p=0.999),
        Sampling(1.0),
        Sampling(0.7, top_k=50, top_p=0.95),
        Sampling(1.0, min_p=0.05),
        Sampling(1.0, typical_p=0.9),
    ],
    ids=str,
)
def test_the_vocabulary_of_a_model_gives_the_probabilities_of_transformers(kind: str, s: Sampling) -> None:
    for seed in range(3):
        assert_same(made(kind, 49_152, seed), s)


@settings(max_examples=150, deadline=None)
@given(row=ROWS, temperature=TEMPERATURES, top_p=SHARES)
def test_a_pick_by_the_tokens_near_the_likeliest_is_the_one_of_the_whole_row(
    row: Row, temperature: float, top_p: float
) -> None:
    s, top = Sampling(temperature, top_p=top_p), float(row.max())
    ids, weights = distribution(row, top, s)
    assert ids is not None
    running = np.cumsum(weights) / np.sum(weights)
    for uniform in np.linspace(0, 1, 300, endpoint=False) + 1e-4:
        token = draw_near(row, top, s, uniform)
        # at the very edge between two tokens either may come
        if token is not None and np.abs(running - uniform).min() > 1e-6:
            assert token == ids[draw(weights, uniform)]


def test_nearly_every_pick_of_a_model_is_decided_near_the_likeliest() -> None:
    row = made("normal", 49_152, 0) - np.float32(2)
    row[[7, 70, 700, 7000, 40_000]] = [17, 16.5, 16, 14, 13]
    for s in (Sampling(0.7, top_p=0.95), Sampling(0.2, top_p=0.9)):
        picks = [draw_near(row, float(row.max()), s, (i + 0.5) / 200) for i in range(200)]
        assert picks.count(None) < 20


LIMITS: list[dict[str, Any]] = [
    {},
    {"top_k": 5},
    {"top_p": 0.8},
    {"top_k": 9, "top_p": 0.9},
    {"min_p": 0.1},
    {"typical_p": 0.7},
    {"presence_penalty": 1.0},
]


@pytest.mark.parametrize("vocab", [40, 6000])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_tokens_come_as_often_as_their_probability(vocab: int, limits: dict[str, Any]) -> None:
    """Chi-square of 4,000 picks of one seed, by groups of tokens that come 80 times or more."""
    row, times = made("normal", vocab, 0), 4000
    s = Sampling(1.5, seed=5, **limits)
    samplers = [Sampler(s, PROMPT, vocab, index=index) for index in range(times)]  # none has an answer yet
    probabilities = ours(processed_by(samplers[0], row), samplers[0])
    tokens = [token for sampler in samplers for token in pick(row[None], [sampler])[0]]
    counts = np.bincount(tokens, minlength=vocab)
    assert (probabilities[counts > 0] > 0).all()
    order = np.argsort(-probabilities)
    expected = probabilities[order] * times
    starts = np.flatnonzero(np.diff(np.floor(expected.cumsum() / 80), prepend=-1))
    observed, wanted = np.add.reduceat(counts[order], starts), np.add.reduceat(expected, starts)
    observed, wanted = observed[wanted > 5], wanted[wanted > 5]
    degrees = max(1, len(wanted) - 1)
    assert ((observed - wanted) ** 2 / wanted).sum() < degrees + 4 * np.sqrt(2 * degrees)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-12, 0.1, 1.0, 3.0]), min_size=1, max_size=9000),
    uniform=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2**-53])),
)
def test_a_token_that_weighs_nothing_is_never_drawn(weights: list[float], uniform: float) -> None:
    array = np.array([*weights, 1e-9, 0.0])
    assert array[draw(array, uniform)] > 0


@pytest.mark.parametrize("count", [3, 100, 4500])
def test_evenly_spread_random_numbers_draw_each_token_by_its_weight(count: int) -> None:
    weights = np.random.default_rng(0).random(count).astype(np.float32) ** 8
    times = 10 * count
    drawn = np.bincount([draw(weights, (i + 0.5) / times) for i in range(times)], minlength=count)
    assert np.abs(drawn - weights / weights.sum(dtype=np.float64) * times).max() <= 1.01
