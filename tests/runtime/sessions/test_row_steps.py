"""A call is cut into runs that an engine's profiles take, and every token is run once with its logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.runtime.sessions.row_steps import EngineFacts, Piece, Sizes, cut, piece_inputs, step_inputs

LENGTH = 64


def facts(tokens: tuple[int, int] = (1, 16), rows: tuple[int, int] = (1, 1), dialect: str = "portable") -> EngineFacts:
    one = (1, 1)
    return EngineFacts(dialect, 320, LENGTH, Sizes(one, tokens, rows), Sizes((1, 4), one, one))  # type: ignore[arg-type]


@st.composite
def calls(draw: st.DrawFn) -> tuple[EngineFacts, int, int, int, int]:
    most = draw(st.integers(1, 16))
    rows = draw(st.integers(1, most))
    profile = facts((draw(st.integers(1, most)), most), (draw(st.integers(1, rows)), rows))
    count = draw(st.integers(1, most))
    start = draw(st.integers(0, LENGTH - count))
    return profile, count, draw(st.integers(0, count)), start, draw(st.integers(0, LENGTH))


@given(calls())
def test_pieces_cover_the_tokens_in_order_with_the_logits_that_were_asked_for(
    call: tuple[EngineFacts, int, int, int, int],
) -> None:
    profile, count, logits, start, length = call
    pieces = cut(profile, count, logits, start, length)
    assert [at for p in pieces for at in range(p.first, p.first + p.count)] == list(range(count))
    wanted = [at for p in pieces for at in range(p.first + p.count - p.wanted, p.first + p.count)]
    assert wanted == list(range(count - logits, count))
    for piece in pieces:
        sizes = profile.prefill if piece.kind == "prefill" else profile.decode
        assert sizes.tokens[0] <= piece.size <= sizes.tokens[1]
        assert max(piece.wanted, sizes.logits[0]) <= sizes.logits[1]
        assert start + piece.first + piece.size <= LENGTH
        # what is filled up never lands on what somebody relies on
        assert piece.size == piece.count or start + piece.first + piece.count >= length
        inputs = piece_inputs(profile, piece, np.arange(count), start)
        assert inputs["input_ids"].shape == inputs["position_ids"].shape == (1, piece.size)
        assert inputs["position_ids"].max() < LENGTH
        rows = inputs["logits_positions"][0]
        assert len(rows) == max(piece.wanted, sizes.logits[0])
        if piece.wanted:
            assert rows[-piece.wanted :].tolist() == list(range(piece.count - piece.wanted, piece.count))


def test_one_run_is_enough_where_the_profile_allows_it() -> None:
    assert cut(facts(rows=(1, 16)), 16, 16, 0, 0) == [Piece("prefill", 0, 16, 16, 16)]
    assert cut(facts(), 16, 1, 0, 0) == [Piece("prefill", 0, 16, 16, 1)]
    assert cut(facts(), 16, 0, 0, 0) == [Piece("prefill", 0, 16, 16, 0)]


def test_an_engine_of_one_row_of_logits_reads_the_last_tokens_one_by_one() -> None:
    assert [(p.first, p.count, p.wanted) for p in cut(facts(), 9, 3, 0, 0)] == [(0, 7, 1), (7, 1, 1), (8, 1, 1)]


def test_a_short_chunk_is_filled_up_unless_that_would_overwrite_or_overflow() -> None:
    wide = facts(tokens=(8, 16))
    assert cut(wide, 3, 1, 20, 20) == [Piece("prefill", 0, 3, 8, 1)]
    one_by_one = [Piece("decode", 0, 1, 1, 0), Piece("decode", 1, 1, 1, 0), Piece("decode", 2, 1, 1, 1)]
    assert cut(wide, 3, 1, 20, 24) == one_by_one
    assert cut(wide, 3, 1, LENGTH - 3, 0) == one_by_one


def test_each_dialect_gets_the_inputs_that_its_graph_declares() -> None:
    tokens, starts, wanted = np.array([[5, 6], [7, 8]]), np.array([3, 0]), np.array([[1], [1]])
    portable = step_inputs(facts(), tokens, starts, wanted)
    assert portable["position_ids"].tolist() == [[3, 4], [0, 1]]
    assert portable["write_indices"].tolist() == [3, 0]
    ort = step_inputs(facts(dialect="ort"), tokens, starts, wanted)
    assert ort["seqlens_k"].tolist() == [4, 1]
    assert ort["total_sequence_length"] == 5
    assert {name: str(array.dtype) for name, array in (portable | ort).items()} == {
        "input_ids": "int64",
        "logits_positions": "int64",
        "position_ids": "int64",
        "write_indices": "int64",
        "seqlens_k": "int32",
        "total_sequence_length": "int32",
    }


@pytest.mark.parametrize(
    ("prefill", "decode", "words"),
    [
        (Sizes((2, 2), (1, 16), (1, 1)), Sizes((1, 4), (1, 1), (1, 1)), "2 rows and more"),
        (Sizes((1, 1), (1, 16), (1, 1)), Sizes((2, 4), (1, 1), (1, 1)), "one row of one token"),
        (Sizes((1, 1), (1, 16), (1, 1)), Sizes((1, 4), (2, 2), (1, 1)), "one row of one token"),
    ],
)
def test_profiles_that_no_session_can_run_are_named(prefill: Sizes, decode: Sizes, words: str) -> None:
    assert words in EngineFacts("portable", 320, LENGTH, prefill, decode).trouble
    assert facts().trouble == ""
