"""The held-out texts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import RequestError
from hermes_deploy.verification import Reference, heldout_chats, heldout_texts
from hermes_deploy.verification.reference import PROMPTS, TOKENS_A_CHAT


def test_there_are_about_as_many_positions_as_asked_for(reference: Reference) -> None:
    compared = sum(map(len, reference.sequences)) - sum(reference.firsts)
    assert 1000 <= compared <= 1000 + len(reference.sequences)
    assert f"{compared} held-out positions" in reference.text


class _Lengths:
    """Renders every chat to a number of its own and as many more tokens as are next in turn."""

    def __init__(self, *lengths: int) -> None:
        self._lengths = itertools.cycle(lengths)
        self._chats = itertools.count(1000)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        if any(message["role"] == "system" for message in messages):
            # a template of 2023: a system message is an error
            raise RequestError("Conversation roles must alternate")
        return [next(self._chats), *range(next(self._lengths) - 1)]


def test_short_chats_are_read_whole_and_long_ones_are_cut_to_one_length() -> None:
    count = len(heldout_chats())
    found = list(map(len, heldout_texts(_Lengths(20, 300, 100, 400), 150 * count).sequences))
    assert 150 * count <= sum(found) < 151 * count
    assert {min(length, max(found)) for length in (20, 300, 100, 400)} >= set(found) >= {20, 100}


def test_more_positions_than_there_are_give_all_that_there_are() -> None:
    count = len(heldout_chats())
    assert set(map(len, heldout_texts(_Lengths(130), 200 * count).sequences)) == {130}


def test_prompts_are_questions_that_await_an_answer_each_of_another_chat(tiny: Checkpoint) -> None:
    tokenizer = ChatTokenizer(tiny.tokenizer)
    prompts = [tokenizer.decode(ids) for ids in heldout_texts(tokenizer, 1000).prompts]
    assert len(set(prompts)) == PROMPTS
    assert all(prompt.endswith("assistant\n") and prompt.count("user\n") == 1 for prompt in prompts)


def test_a_template_without_system_messages_is_served_too() -> None:
    sequences = heldout_texts(_Lengths(500), 200 * len(heldout_chats())).sequences
    assert len(sequences) == len(heldout_chats())
    assert set(map(len, sequences)) == {200}


def test_few_positions_are_had_from_few_chats() -> None:
    sequences = heldout_texts(_Lengths(500), 4 * TOKENS_A_CHAT).sequences
    assert list(map(len, sequences)) == [TOKENS_A_CHAT] * 4
