"""Prefixes are found, whole and only whole."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.runtime.prefix_cache import LEAST_READ, Row, choose_row, common_prefix, longer_elsewhere

TOKENS = st.lists(st.integers(0, 1), max_size=12)


@given(TOKENS, TOKENS)
def test_the_common_prefix_is_equal_and_cannot_be_longer(a: list[int], b: list[int]) -> None:
    n = common_prefix(np.array(a, dtype=np.int64), np.array(b, dtype=np.int64))
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


def row(tokens: list[int], used: int = 0) -> Row:
    made = Row(64)
    made.write(tokens)
    made.used = used
    return made


PROMPT = np.arange(20)


def test_the_row_with_most_of_the_prompt_is_taken_if_that_is_half_of_what_it_holds() -> None:
    rows = [row([0, 1, 2], 1), row([*range(10), *[50] * 10], 5), row([*range(12), *[50] * 13], 5)]
    assert choose_row(PROMPT, rows, [0, 1, 2]) == (1, 10)
    assert choose_row(PROMPT, rows, [0, 2]) == (0, 3)


def test_else_the_oldest_row_is_taken_and_what_it_has_of_the_prompt_is_kept() -> None:
    rows = [row([*range(4), *[50] * 30], 7), row([*range(3), *[50] * 30], 2)]
    assert choose_row(PROMPT, rows, [0, 1]) == (1, 3)


def test_the_longest_prefix_elsewhere_is_found_and_never_the_whole_prompt() -> None:
    rows = [row([0]), row(list(range(5))), row(list(range(30))), row(list(range(9)))]
    assert longer_elsewhere(PROMPT, 1, rows, own=0) == (2, len(PROMPT) - LEAST_READ)
    assert longer_elsewhere(PROMPT, 18, rows, own=0) == (0, 18)
    assert longer_elsewhere(PROMPT, 4, [rows[0], rows[1], rows[3]], own=0) == (2, 9)
