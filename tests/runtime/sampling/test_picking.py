"""Each chat's tokens obey its own settings and depend on nothing else; what the model thought of them is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.sampling import (
    CONSTRAINT_FAILED,
    NOT_FINITE,
    NOTHING_ALLOWED,
    Sampler,
    Sampling,
    TokenLogprobs,
    pick,
    prompt_logprobs,
)

Rows = npt.NDArray[np.float32]
NO_PROMPT = np.empty(0, dtype=np.int64)


def rows(count: int, vocab: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).normal(0, 3, (count, vocab)).astype(np.float32)


def chat(sampling: Sampling, vocab: int, prompt: npt.NDArray[np.int64] = NO_PROMPT, **more: Any) -> Sampler:
    return Sampler(sampling, prompt, vocab, **more)


def draws(row: Rows, sampler: Sampler, times: int) -> list[int]:
    """`times` tokens of one chat, from the same logits [vocab] each time."""
    return [pick(row[None].copy(), [sampler])[0][0] for _ in range(times)]


class Allows:
    """A constraint that allows `tokens` and remembers what it was given."""

    def __init__(self, tokens: list[int], vocab: int) -> None:
        self.words = np.zeros(-(-vocab // 32), dtype=np.uint32)
        for token in tokens:
            self.words[token // 32] |= np.uint32(1 << token % 32)
        self.accepted: list[int] = []

    def mask(self) -> npt.NDArray[np.uint32]:
        return self.words

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def test_temperature_zero_takes_the_largest_and_of_equal_ones_the_lowest_id() -> None:
    logits = rows(5, 300)
    logits[2, [40, 7, 200]] = 50
    ids, logprobs = pick(logits.copy(), [chat(Sampling(), 300) for _ in logits])
    assert ids == logits.argmax(axis=1).tolist()
    assert ids[2] == 7
    assert logprobs == [None] * 5


def test_a_seed_and_an_index_name_one_stream_and_any_other_is_another() -> None:
    row = rows(1, 500)[0]

    def stream(seed: int | None, index: int = 0) -> list[int]:
        return draws(row, chat(Sampling(1.0, seed=seed), 500, index=index), 20)

    assert stream(3) == stream(3)
    assert stream(3, 2) == stream(3, 2)
    # 5 + 7 * 2^32 has the words of seed 5, index 7
    others = [stream(3), stream(4), stream(3, 1), stream(3, 2), stream(5, 7), stream(5 + 7 * 2**32), stream(2**64 - 1)]
    assert len({tuple(tokens) for tokens in others}) == len(others)
    assert stream(None) != stream(None)


def test_the_stream_of_a_seed_stays_what_it_was() -> None:
    """Answers to a seed were given to people: a change here breaks their runs."""
    row = rows(1, 500)[0]
    assert draws(row, chat(Sampling(2.0, seed=1234), 500), 8) == [247, 120, 370, 494, 271, 293, 66, 361]
    assert draws(row, chat(Sampling(2.0, seed=1234), 500, index=1), 8) == [351, 270, 219, 180, 300, 270, 192, 422]


SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.2, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 0, 1, 50]),
    top_p=st.sampled_from([1.0, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
    typical_p=st.sampled_from([1.0, 1.0, 0.9]),
    seed=st.integers(0, 2**64 - 1),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    bad_words=st.sampled_from([(), ((3,), (1, 2))]),
)


@settings(max_examples=60, deadline=None)
@given(
    chats=st.lists(st.tuples(SETTINGS, st.sampled_from([None, 0, 5])), min_size=1, max_size=6),
    vocab=st.sampled_from([50, 1001, 5003, 8192]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_what_else_is_in_the_batch_changes_not_a_bit(
    chats: list[tuple[Sampling, int | None]], vocab: int, seed: int, data: st.DataObject
) -> None:
    steps = [rows(len(chats), vocab, seed + step) for step in range(3)]

    def answers(groups: list[list[int]]) -> dict[int, list[Any]]:
        prompt = np.array([1, 2, 3], dtype=np.int64)
        samplers = [chat(s, vocab, prompt, logprobs=top) for s, top in chats]
        got: dict[int, list[Any]] = {i: [] for i in range(len(chats))}
        for logits in steps:
            for group in groups:
                ids, logprobs = pick(logits[group], [samplers[i] for i in group])
                for i, token, logprob in zip(group, ids, logprobs, strict=True):
                    got[i].append((token, logprob))
        return got

    everyone = list(range(len(chats)))
    order = data.draw(st.permutations(everyone))
    cut = data.draw(st.integers(0, len(chats)))
    groups = [group for group in (order[:cut], order[cut:]) if group]
    assert answers([everyone]) == answers([[i] for i in everyone]) == answers(groups)


def test_logits_that_lie_apart_in_memory_give_the_same() -> None:
    logits = rows(4, 6000)
    apart = np.repeat(logits, 2, axis=1)[:, ::2]
    pairs = [
        pick(given_, [chat(Sampling(t, top_p=p, seed=1), 6000, logprobs=3) for t, p in SOME])
        for given_ in (logits.copy(), apart)
    ]
    assert pairs[0] == pairs[1]


SOME = [(0.0, 1.0), (1.0, 1.0), (0.7, 0.95), (2.0, 0.9)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_is_told_apart_and_its_neighbours_are_not_touched(
    bad: float, temperature: float
) -> None:
    logits = rows(3, 50)
    right = pick(logits.copy(), [chat(Sampling(temperature, seed=1), 50) for _ in range(3)])[0]
    logits[1, 7] = bad
    ids, logprobs = pick(logits, [chat(Sampling(temperature, seed=1), 50, logprobs=1) for _ in range(3)])
    assert ids == [right[0], NOT_FINITE, right[2]]
    assert logprobs[1] is None
    assert logprobs[0] is not None


def test_a_row_of_nothing_but_minus_infinity_is_not_finite() -> None:
    assert pick(np.full((1, 9), -np.inf, dtype=np.float32), [chat(Sampling(1.0), 9)])[0] == [NOT_FINITE]


@pytest.mark.parametrize("temperature", [0.0, 0.001, 1.0, 100.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_largest_numbers_and_the_smallest_temperatures_still_pick(temperature: float, top_p: float) -> None:
    row = np.array([3e38, -3e38, -np.inf, 0, 3.2e38], dtype=np.float32)
    for tiny in (temperature, temperature * 1e-6, temperature * 1e-50):
        assert set(draws(row, chat(Sampling(tiny, top_p=top_p), 5), 5)) == {4}


def test_no_stop_id_comes_before_min_tokens() -> None:
    row = np.array([0, 0, 0, 9, 8], dtype=np.float32)
    sampler = chat(Sampling(), 5, stop_ids=frozenset({3, 4}), min_tokens=2)
    assert draws(row, sampler, 4) == [0, 0, 3, 3]


def test_a_bad_word_of_several_tokens_is_cut_before_its_last_one() -> None:
    likes = {0: 1, 1: 2, 2: 3, 3: 0}  # 0 1 2 3 0 1 2 3 ...

    def answer(*bad: tuple[int, ...], prompt: tuple[int, ...] = (3,)) -> list[int]:
        sampler = chat(Sampling(bad_words=bad), 6, np.array(prompt, dtype=np.int64))
        tokens = list(prompt)
        for _ in range(6):
            row = np.array([0, 0, 0, 0, 5, 4], dtype=np.float32)
            row[likes.get(tokens[-1], 0)] = 9
            tokens += pick(row[None], [sampler])[0]
        return tokens[len(prompt) :]

    assert answer() == [0, 1, 2, 3, 0, 1]
    assert answer((1, 2, 3)) == [0, 1, 2, 4, 0, 1]
    assert answer((9 - 6, 0, 1)) == [0, 4, 0, 1, 2, 3]  # begun in the prompt
    assert answer((2,), (1, 4)) == [0, 1, 5, 0, 1, 5]
    assert answer((3, 0, 1, 2, 3), prompt=(1, 2, 3)) == [0, 1, 2, 4, 0, 1]


def test_penalties_follow_the_answer_as_it_grows() -> None:
    row = np.array([3.0, 2.9, 2.0, 0], dtype=np.float32)
    assert draws(row, chat(Sampling(presence_penalty=0.5), 4), 4) == [0, 1, 0, 0]
    assert draws(row, chat(Sampling(frequency_penalty=0.5), 4), 6) == [0, 1, 0, 1, 0, 2]
    prompt = np.array([0, 0, 1], dtype=np.int64)
    assert draws(row, chat(Sampling(repetition_penalty=2.0), 4, prompt), 2) == [2, 0]
    assert draws(row, chat(Sampling(presence_penalty=0.5), 4, prompt), 1) == [0]  # the prompt does not count


def test_penalties_reach_every_token_of_a_long_answer() -> None:
    row = np.linspace(2, 1, 400).astype(np.float32)
    assert draws(row, chat(Sampling(presence_penalty=2.0), 400), 400) == list(range(400))


@pytest.mark.parametrize("vocab", [5, 64, 100])
def test_a_constraint_limits_what_comes_and_hears_of_it(vocab: int) -> None:
    constraint = Allows([1, vocab - 1], vocab)
    constraint.words[-1] |= np.uint32((1 << 31) if vocab % 32 else 0)  # bits past the vocabulary mean nothing
    row = np.arange(vocab, dtype=np.float32)
    row[vocab - 2] = 1e6
    assert draws(row, chat(Sampling(), vocab, constraint=constraint), 2) == [vocab - 1] * 2
    assert constraint.accepted == [vocab - 1] * 2
    row[:] = 0
    drawn = draws(row, chat(Sampling(1.0, seed=0), vocab, constraint=constraint), 40)
    assert set(drawn) == {1, vocab - 1}


def test_where_nothing_is_allowed_this_is_told_and_nothing_is_recorded() -> None:
    none, one = Allows([], 40), Allows([3], 40)
    samplers = [
        chat(Sampling(), 40, constraint=none),
        chat(Sampling(), 40),
        chat(Sampling(1.0, bad_words=((3,),)), 40, constraint=one),
    ]
    logits = rows(3, 40)
    ids, _ = pick(logits.copy(), samplers)
    assert ids == [NOTHING_ALLOWED, int(logits[1].argmax()), NOTHING_ALLOWED]
    assert none.accepted == one.accepted == []


class Broken(Allows):
    def accept(self, token: int) -> None:
        raise RuntimeError(f"cannot take {token}")


class OfAnotherModel(Allows):
    def mask(self) -> npt.NDArray[np.uint32]:
        return np.zeros(9, dtype=np.uint32)


def test_a_constraint_that_fails_ends_its_own_chat_and_no_other() -> None:
    logits = rows(3, 40)
    samplers = [
        chat(Sampling(), 40, constraint=Broken([3], 40)),
        chat(Sampling(), 40),
        chat(Sampling(), 40, constraint=OfAnotherModel([3], 40)),
    ]
    ids, logprobs = pick(logits.copy(), samplers)
    assert ids == [CONSTRAINT_FAILED, int(logits[1].argmax()), CONSTRAINT_FAILED]
    assert str(samplers[0].failure) == "cannot take 3"
    assert "the mask is uint32 [9]; 40 tokens take uint32 [2]" in str(samplers[2].failure)
    assert logprobs == [None] * 3


@pytest.mark.parametrize("top", [0, 1, 5, 20])
@pytest.mark.parametrize("vocab", [30, 49_152])
def test_log_probabilities_are_those_of_the_raw_logits(top: int, vocab: int) -> None:
    logits = rows(3, vocab)
    right = torch.log_softmax(torch.from_numpy(logits).double(), dim=-1)
    s = Sampling(0.7, top_p=0.9, seed=1, repetition_penalty=2.0, logit_bias=((4, 50.0),))
    ids, logprobs = pick(logits.copy(), [chat(s, vocab, np.arange(3), logprobs=top) for _ in range(3)])
    assert_right(right, ids, logprobs, top)
    assert_right(right, [4, 0, 29], prompt_logprobs(logits, np.array([4, 0, 29]), top), top)


def assert_right(
    right: torch.Tensor, ids: list[int], got: list[TokenLogprobs | None] | list[TokenLogprobs], top: int
) -> None:
    for row, token, logprobs in zip(right, ids, got, strict=True):
        assert logprobs is not None
        assert logprobs.logprob == pytest.approx(float(row[token]), abs=1e-12)
        best = torch.topk(row, top)
        assert [token for token, _ in logprobs.top] == best.indices.tolist()
        assert [logprob for _, logprob in logprobs.top] == pytest.approx(best.values.tolist(), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.sampled_from([-np.inf, -40.0, 0.0, 1.0, 1e30]), min_size=1, max_size=900),
    top=st.integers(0, 20),
)
def test_of_equal_logits_the_lower_ids_are_named_and_of_impossible_ones_none(logits: list[float], top: int) -> None:
    row = np.array([*logits, 0.5], dtype=np.float32)
    order = sorted((i for i in range(len(row)) if row[i] > -np.inf), key=lambda i: (-row[i], i))
    (logprobs,) = prompt_logprobs(row[None], np.array([0]), top)
    assert [token for token, _ in logprobs.top] == order[:top]
    assert (logprobs.logprob == -np.inf) == (row[0] == -np.inf)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_prompt_whose_logits_are_not_finite_is_refused(bad: float) -> None:
    logits = rows(3, 50)
    logits[1, 7] = bad
    with pytest.raises(RequestError, match="not finite before the prompt's token 9") as caught:
        prompt_logprobs(logits, np.array([8, 9, 10]), 2)
    assert caught.value.code == "INTERNAL"


@pytest.mark.parametrize(
    ("sampling", "more", "message"),
    [
        ({"logit_bias": ((50, 1.0),)}, {}, "logit_bias holds token id 50; this model has ids 0 to 49"),
        ({"bad_words": ((1,), (2, 99))}, {}, "bad_words holds token id 99; this model has ids 0 to 49"),
        ({}, {"stop_ids": frozenset({-1})}, "stop_ids holds token id -1; this model has ids 0 to 49"),
        ({}, {"min_tokens": -1}, "min_tokens is -1; allowed is 0 or more"),
        ({}, {"min_tokens": 1.5}, "min_tokens is 1.5, which is no whole number"),
        ({}, {"index": -1}, "index is -1; allowed is 0 or more"),
        ({}, {"logprobs": 21}, "logprobs is 21; allowed is 0 to 20"),
        ({}, {"logprobs": True}, "logprobs is True, which is no whole number"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_the_first_token(
    sampling: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        chat(Sampling(**sampling), 50, **more)
