"""Greedy answers of the reference, and where a candidate leaves them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.quantization import hidden_states
from hermes_deploy.verification.answers import answer
from hermes_deploy.verification.candidate import Candidate
from hermes_deploy.verification.divergence import divergences, median_divergence
from hermes_deploy.verification.result import Divergence
from tests.verification.conftest import Build

PROMPTS = [[5, 9, 200, 31], [7, 7], [250, 3, 2, 90, 14, 60]]


def logits_after(tiny: Checkpoint, ids: list[int]) -> np.ndarray:
    return hidden_states(tiny.config, tiny.tensors, [ids])[-1] @ tiny.tensors["lm_head.weight"].float32().T


def test_every_token_is_the_first_choice_after_all_that_stands_before_it(tiny: Checkpoint) -> None:
    found = answer(tiny.config, tiny.tensors, PROMPTS, length=6)
    for prompt, tokens in zip(PROMPTS, found.tokens, strict=True):
        assert len(tokens) == 6
        for at, token in enumerate(tokens):
            assert logits_after(tiny, [*prompt, *tokens[:at]]).argmax() == token
    head = tiny.tensors["lm_head.weight"].float32()
    assert (found.hidden @ head.T).argmax(axis=1).tolist() == [token for tokens in found.tokens for token in tokens]


def test_a_sliding_window_holds_while_answering(tiny: Checkpoint) -> None:
    narrow = replace(tiny, config=replace(tiny.config, sliding_window=3))
    (tokens,) = answer(narrow.config, narrow.tensors, PROMPTS[2:], length=5).tokens
    for at, token in enumerate(tokens):
        assert logits_after(narrow, [*PROMPTS[2], *tokens[:at]]).argmax() == token


def test_an_answer_ends_with_its_stop_token(tiny: Checkpoint) -> None:
    whole = answer(tiny.config, tiny.tensors, PROMPTS, length=8).tokens
    stop = whole[0][3]
    cut = answer(tiny.config, tiny.tensors, PROMPTS, length=8, stop_ids=[stop])
    assert cut.tokens[0] == whole[0][: whole[0].index(stop) + 1]
    assert len(cut.hidden) == sum(map(len, cut.tokens))


def test_an_equal_build_never_diverges(tiny: Checkpoint, build: Build) -> None:
    found = answer(tiny.config, tiny.tensors, PROMPTS, length=8)
    for recipe, where in (("fp32", "cpu"), ("fp16", "sm80")):
        candidate = Candidate(build(recipe, where), 64)
        both = divergences(found, tiny.tensors["lm_head.weight"].float32(), candidate, None)
        assert [each.at for each in both] == [None] * len(PROMPTS)
        assert median_divergence(both) == (8.0, True)


def greedy(path: Path, prompt: list[int], length: int) -> list[int]:
    candidate, ids = Candidate(path, 64), list(prompt)
    for _ in range(length):
        (*_, (_, _, logits)) = candidate.answers([ids])
        ids.append(int(logits[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("where", ["cpu", "sm80"])
def test_the_position_is_that_at_which_two_answers_given_alone_would_part(
    where: str, tiny: Checkpoint, build: Build
) -> None:
    path = build("int4-rtn", where)
    found = answer(tiny.config, tiny.tensors, PROMPTS, length=8)
    parted = divergences(found, tiny.tensors["lm_head.weight"].float32(), Candidate(path, 64), None)
    for prompt, tokens, each in zip(PROMPTS, found.tokens, parted, strict=True):
        alone = greedy(path, prompt, 8)
        other = [at for at in range(8) if alone[at] != tokens[at]]
        assert each.at == (other[0] if other else None)
        if other:
            assert each.reference[0][0] == f"<{tokens[other[0]]}>"
            assert each.candidate[0][0] == f"<{alone[other[0]]}>"
    assert any(each.at is not None for each in parted)


def test_prompts_that_the_context_does_not_hold_are_left_out(tiny: Checkpoint, build: Build) -> None:
    found = answer(tiny.config, tiny.tensors, [*PROMPTS, list(range(40))], length=8)
    path = build("fp32", "cpu", max_context=32)
    assert len(divergences(found, tiny.tensors["lm_head.weight"].float32(), Candidate(path, 64), None)) == 3


def parted(at: int | None) -> Divergence:
    return Divergence("", 24, at, "", "", (), ())


@pytest.mark.parametrize(
    ("places", "median"),
    [
        ([3], (3.0, False)),
        ([0, 4], (2.0, False)),
        ([1, 5, None], (5.0, False)),
        ([1, None, None], (24.0, True)),
        ([7, None], (7.0, True)),
        ([None, None], (24.0, True)),
    ],
)
def test_equal_answers_count_as_longer_than_all_others(places: list[int | None], median: tuple[float, bool]) -> None:
    assert median_divergence([parted(at) for at in places]) == median
