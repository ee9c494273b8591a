"""What a chat says next is looked up where it was said before, and how often that was right is known."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.runtime.drafter import Drafter
from hermes_deploy.runtime.speculation import draft_of, worth_checking

TEXT = [5, 1, 7, 3, 9, 2, 8, 6, 4, 0, 11, 13, 12, 17, 15, 19, 14, 16, 10, 18]


def drafter(prompt: list[int], *answer: int, remembered: int = 1000) -> Drafter:
    made = Drafter(np.array(prompt, dtype=np.int64), remembered)
    for token in answer:
        made.add(token)
    return made


def test_what_followed_the_last_two_tokens_before_is_guessed() -> None:
    made = drafter([*TEXT, 50, 51], 7, 3)
    assert made.draft(4) == [9, 2, 8, 6]
    assert len(made.chances(4)) == 4


def test_nothing_is_guessed_where_the_last_tokens_are_new() -> None:
    assert drafter([*TEXT, 50, 51], 7, 4).chances(4) == []
    assert drafter([1], 2).chances(4) == []


def test_three_tokens_that_agree_are_believed_before_two() -> None:
    assert drafter([1, 2, 3, 30, 9, 9, 5, 2, 3, 40, 50], 1, 2, 3).draft(1) == [30]


def test_of_several_places_the_newest_is_taken() -> None:
    assert drafter([1, 2, 30, 1, 2, 40, 60], 1, 2).draft(1) == [40]


def test_what_goes_round_goes_on_going_round() -> None:
    assert drafter([1, 2, 3, 1, 2]).draft(7) == [3, 1, 2, 3, 1, 2, 3]


def test_a_word_that_was_replaced_does_not_end_the_copy() -> None:
    made = drafter([*TEXT, 50, 51], *TEXT[:6], 77)
    assert made.draft(3) == TEXT[7:10]
    # after two that were right only it is no copy
    assert drafter([*TEXT, 50, 51], *TEXT[:2], 77).chances(1) == []


def test_a_chat_that_keeps_its_promises_is_believed_more_and_one_that_breaks_them_less() -> None:
    before = drafter([1, 2, 3, 60, 61], 1, 2).chances(1)[0]
    kept = drafter([*TEXT, 50, 51], *TEXT)
    assert kept.chances(1)[0] > before
    broken = [token for n in range(20) for token in (1, 2, 100 + n)]
    assert drafter([1, 2, 3, 60, 61], *broken, 1, 2).chances(1)[0] < before / 2


def test_believing_less_is_not_for_ever() -> None:
    broken = [token for n in range(20) for token in (1, 2, 100 + n)]
    made = drafter([1, 2, 3, 60, 61], *broken, 1, 2)
    low = made.chances(1)[0]
    for token in TEXT * 4:
        made.add(token)
    made.add(1)
    made.add(7)
    assert made.chances(1)[0] > 2 * low


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(0, 120), st.integers(2, 9))
def test_a_guess_is_always_what_followed_the_same_two_tokens(tokens: list[int], split: int, remembered: int) -> None:
    """Or stands behind a word that was replaced. However little is remembered, and wherever the prompt ends."""
    split = min(split, len(tokens))
    made = drafter(tokens[:split], *tokens[split:], remembered=remembered)
    assert made.seen == len(tokens)
    assert len(made._tokens) < 2 * remembered + 1
    assert len(made._after_two) + len(made._after_three) <= 2 * len(made._tokens)
    if made.chances(3):
        assert len(made.draft(3)) == 3
        assert set(made.draft(3)) <= set(tokens)
        place, kept = made._place, made._tokens
        assert place is not None
        assert made._resumed or kept[place - 2 : place] == kept[-2:]


def test_following_a_row_of_the_cache_is_adding_its_tokens_one_by_one() -> None:
    row = np.array([*TEXT, 50, 51, *TEXT[:6]], dtype=np.int64)
    one, other = drafter([*TEXT, 50]), drafter([*TEXT, 50], 51, *TEXT[:7])
    one.follow(row[:22], TEXT[0])
    one.follow(row, TEXT[6])
    assert one.seen == other.seen == len(row) + 1
    assert one.draft(5) == other.draft(5)
    assert one.chances(5) == other.chances(5)


@given(st.lists(st.floats(0, 1), max_size=15), st.floats(0, 2))
def test_what_is_checked_pays_and_no_other_number_pays_more(chances: list[float], further: float) -> None:
    def gain(count: int) -> float:
        tokens = 1 + sum(float(np.prod(chances[: n + 1])) for n in range(count))
        return tokens / (1 + count * further)

    count = worth_checking(chances, further)
    assert count <= len(chances)
    best = max(gain(n) for n in range(len(chances) + 1))
    assert gain(count) >= best - 0.02 - 1e-9
    assert count == 0 or gain(count) > 1


def copying() -> Drafter:
    return drafter([*TEXT, 50, 51], *TEXT[:10])


def test_a_chat_that_copies_has_what_it_copies_checked_as_far_as_there_is_room() -> None:
    assert draft_of(copying(), 9, ()) == TEXT[10:19]
    assert draft_of(copying(), 3, ()) == TEXT[10:13]
    assert draft_of(copying(), 0, ()) == []


def test_nothing_behind_a_stop_token_is_checked() -> None:
    assert draft_of(copying(), 9, {TEXT[12]}) == TEXT[10:12]
    assert draft_of(copying(), 9, {TEXT[10]}) == []


def test_a_chat_whose_guesses_are_wrong_has_none_checked_until_they_are_right_again() -> None:
    broken = [token for n in range(20) for token in (1, 2, 100 + n)]
    made = drafter([1, 2, 3, 60, 61], *broken, 1, 2)
    assert made.chances(1)
    assert draft_of(made, 9, ()) == []
    for token in [*TEXT, *TEXT]:
        made.add(token)
    assert draft_of(made, 9, ()) != []
