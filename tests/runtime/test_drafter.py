"""What a chat says next is looked up where it was said before, and how often that was right is known."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.runtime.drafter import Drafter
from hermes_deploy.runtime.speculation import MOST, Speculation, worth_checking

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
    best = max(gain(n) for n in range(len(chances) + 1))
    assert gain(count) >= best - 0.02 - 1e-9
    assert count == 0 or gain(count) > 1


def copying() -> Drafter:
    return drafter([*TEXT, 50, 51], *TEXT[:10])


def test_nothing_is_checked_before_a_plain_step_was_measured() -> None:
    speculation = Speculation(MOST)
    assert speculation.draft(copying(), 9, ()) == []
    speculation.stepped(0.01)
    assert speculation.draft(copying(), 9, ()) == TEXT[10:19]
    assert speculation.draft(copying(), 3, ()) == TEXT[10:13]
    assert Speculation(2)._most == 2


def test_nothing_behind_a_stop_token_is_checked() -> None:
    speculation = Speculation(MOST)
    speculation.stepped(0.01)
    assert speculation.draft(copying(), 9, {TEXT[12]}) == TEXT[10:12]
    assert speculation.draft(copying(), 9, {TEXT[10]}) == []


def test_an_engine_for_which_checking_is_dear_checks_less_and_later_tries_again() -> None:
    speculation = Speculation(MOST)
    speculation.stepped(0.01)
    for _ in range(30):
        speculation.checked(4, 0.01 * (1 + 3 * 1.2))
    assert speculation.draft(copying(), 9, ()) == []
    for _ in range(100):
        speculation.stepped(0.01)
    assert speculation.draft(copying(), 9, ()) != []


def test_an_engine_for_which_checking_is_free_checks_all_that_it_can() -> None:
    speculation = Speculation(6)
    speculation.stepped(0.01)
    for _ in range(30):
        speculation.checked(4, 0.009)
    assert speculation.further < 0.01
    assert len(speculation.draft(copying(), 9, ())) == 6
