"""Prefixes are found, whole and only whole."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.runtime.prefix_cache import common_prefix

TOKENS = st.lists(st.integers(0, 1), max_size=12)


@given(TOKENS, TOKENS)
def test_the_common_prefix_is_equal_and_cannot_be_longer(a: list[int], b: list[int]) -> None:
    n = common_prefix(np.array(a, dtype=np.int64), np.array(b, dtype=np.int64))
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]
