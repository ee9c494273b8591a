"""From ids to what a caller gets: text and ids are all there, a stop text never shows, and the reason is true."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.stream import Delta, Generation
from hermes_deploy.serving.answer import Answer
from hermes_deploy.serving.tensor_io import Piece
from tests.chat.conftest import files_of
from tests.chat.test_stop_text import expected
from tests.fixtures.tiny import byte_tokenizer_json

TEXTS = st.lists(st.sampled_from(["a", "b", "ab", "é", "😀", "e\u0301", "漢", " ", "\n"]), max_size=12).map("".join)
STOPS = st.lists(st.sampled_from(["a", "ab", "é", "😀", "\u0301", "漢 ", "\n\n", "b😀"]), max_size=3, unique=True)


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    """One token a byte, so every character of several bytes is cut somewhere."""
    return ChatTokenizer(files_of(byte_tokenizer_json()))


def pieces_of(tokenizer: ChatTokenizer, ids: list[int], cuts: list[int], stops: list[str], last: Delta) -> list[Piece]:
    """What the engine model sends: up to the first piece with a finish reason."""
    answer = Answer(tokenizer, Generation(np.array([1, 2, 3]), 99), stops)
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    deltas = [Delta(tuple(ids[start:end])) for start, end in pairwise(edges)]
    sent: list[Piece] = []
    for delta in [*deltas, last]:
        sent.append(answer.piece(delta))
        if sent[-1].finish_reason:
            return sent
    raise AssertionError("the last piece has no finish reason")


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, stops=STOPS, cuts=st.lists(st.integers(0, 60), max_size=8))
def test_pieces_together_are_the_answer_up_to_its_stop_text(
    text: str, stops: list[str], cuts: list[int], tokenizer: ChatTokenizer
) -> None:
    ids = tokenizer.encode(text)
    sent = pieces_of(tokenizer, ids, cuts, stops, Delta((), "length"))
    shown, stopped = expected(text, stops)
    assert "".join(piece.text for piece in sent) == shown
    assert sent[-1].finish_reason == ("stop" if stopped else "length")
    assert [piece.finish_reason for piece in sent[:-1]] == [""] * (len(sent) - 1)
    taken = [i for piece in sent for i in piece.token_ids]
    assert taken == ids[: len(taken)] and (stopped or taken == ids)
    assert sent[-1].completion_tokens == len(taken)
    # and they are the same however they were cut
    alone = pieces_of(tokenizer, ids, list(range(len(ids))), stops, Delta((), "length"))
    assert taken == [i for piece in alone for i in piece.token_ids]


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, kept=st.integers(0, 40))
def test_an_answer_that_is_cut_off_inside_a_character_ends_in_one_replacement_mark(
    text: str, kept: int, tokenizer: ChatTokenizer
) -> None:
    ids = tokenizer.encode(text)[:kept]
    sent = pieces_of(tokenizer, ids, list(range(len(ids))), [], Delta((), "length"))
    assert "".join(piece.text for piece in sent) == text.encode()[:kept].decode("utf-8", "replace")
    assert "\ufffd" not in "".join(piece.text for piece in sent[:-1])


def test_a_failure_stays_a_failure_even_where_the_rest_held_a_stop_text(tokenizer: ChatTokenizer) -> None:
    failed = Delta(tuple(tokenizer.encode("ab")), "error", RequestError("the engine failed", code="INTERNAL"))
    (piece,) = pieces_of(tokenizer, [], [], ["b"], failed)[-1:]
    assert (piece.finish_reason, piece.error_code, piece.text) == ("error", "INTERNAL", "a")
