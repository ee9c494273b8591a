"""Stop texts: found across pieces, never shown, and nothing else is held back."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.chat import StopText
from hermes_deploy.errors import RequestError

letters = st.text(alphabet="ab\né", max_size=30)
stop_lists = st.lists(st.text(alphabet="ab\né", min_size=1, max_size=4), max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Plain definition: read character by character, end when some stop text is complete."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def run(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    stop_text = StopText(stops)
    shown, stopped = "", False
    for piece in pieces:
        released, stopped = stop_text.push(piece)
        shown += released
    return shown + stop_text.flush(), stopped


@given(text=letters, stops=stop_lists, cuts=st.lists(st.integers(0, 30), max_size=6))
def test_what_is_shown_does_not_depend_on_the_pieces(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert run(pieces, stops) == expected(text, stops)


@given(text=letters, stops=stop_lists)
def test_only_what_may_become_a_stop_text_is_held_back(text: str, stops: list[str]) -> None:
    stop_text = StopText(stops)
    released, stopped = stop_text.push(text)
    if not stopped:
        held = text[len(released) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_a_stop_text_over_three_pieces_ends_the_answer_before_it() -> None:
    stop_text = StopText(["\nUser:"])
    assert stop_text.push("Hello\n") == ("Hello", False)
    assert stop_text.push("Us") == ("", False)
    assert stop_text.push("er: more") == ("", True)
    assert stop_text.push("even more") == ("", True)
    assert stop_text.flush() == ""


def test_text_that_only_began_like_a_stop_text_is_shown() -> None:
    stop_text = StopText(["###"])
    assert stop_text.push("a ##") == ("a ", False)
    assert stop_text.push(" b") == ("## b", False)
    assert stop_text.push("#") == ("", False)
    assert stop_text.flush() == "#"


@pytest.mark.parametrize("stops", [[""], ["x" * 257], ["a"] * 17, ["\ud800"]])
def test_stop_texts_that_cannot_be_looked_for_are_refused(stops: list[str]) -> None:
    with pytest.raises(RequestError, match="stop"):
        StopText(stops)
