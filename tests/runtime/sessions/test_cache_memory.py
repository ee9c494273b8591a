"""Rows seen side by side in any order are the rows themselves."""

from __future__ import annotations

import ctypes
import gc
import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.errors import ServeError
from hermes_deploy.runtime.sessions.cache_memory import CacheMemory, RowView, padded_context

CACHES, SLOTS, ROW = 3, 5, mmap.PAGESIZE


def seen(view: RowView, cache: int, rows: int) -> np.ndarray:
    buffer = (ctypes.c_int64 * (rows * ROW // 8)).from_address(view.addresses[cache])
    return np.frombuffer(buffer, dtype=np.int64).reshape(rows, -1)


@given(st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=SLOTS, unique=True))
def test_a_view_shows_the_rows_in_order_and_writes_go_both_ways(slots: list[int]) -> None:
    memory = CacheMemory(CACHES, SLOTS, ROW)
    arrays = [memory.array(cache, np.int64, (ROW // 8,)) for cache in range(CACHES)]
    for cache, array in enumerate(arrays):
        array[:] = np.arange(SLOTS)[:, None] + 100 * cache
    view = RowView(memory, slots)
    for cache in range(CACHES):
        rows = seen(view, cache, len(slots))
        assert rows[:, 0].tolist() == [slot + 100 * cache for slot in slots]
        rows[0, 7] = -1
        assert arrays[cache][slots[0], 7] == -1
        arrays[cache][slots[-1], 9] = -2
        assert rows[len(slots) - 1, 9] == -2


def test_memory_is_taken_when_it_is_written_and_a_view_takes_none() -> None:
    memory = CacheMemory(2, 64, 64 * ROW)
    assert memory.used_bytes() == 0
    memory.array(0, np.uint8, (64 * ROW,))[3] = 1
    used = memory.used_bytes()
    assert used >= 64 * ROW
    view = RowView(memory, [9, 3])
    assert memory.used_bytes() == used
    del view


def test_views_that_are_dropped_leave_no_mapping_behind() -> None:
    memory = CacheMemory(4, 8, ROW)

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("hermes-kv")

    before = mappings()
    for _ in range(50):
        view = RowView(memory, [5, 1, 3])
        assert mappings() >= before + 12
        del view
    gc.collect()
    assert mappings() == before


def test_a_cache_that_is_too_large_is_refused_with_what_to_do() -> None:
    with pytest.raises(ServeError, match="--max-slots"):
        CacheMemory(1, 1 << 20, 1 << 42)


@given(st.integers(1, 5000), st.sampled_from([64, 96, 256, 768, 4096, 6144]))
def test_a_padded_context_fills_whole_pages_and_wastes_less_than_one_page_a_cache(
    context: int, token_bytes: int
) -> None:
    padded = padded_context(context, token_bytes)
    assert padded >= context
    assert padded * token_bytes % mmap.PAGESIZE == 0
    assert (padded - context) * token_bytes < mmap.PAGESIZE * token_bytes / np.gcd(mmap.PAGESIZE, token_bytes)


def test_closing_gives_the_memory_back_at_once() -> None:
    memory = CacheMemory(2, 4, ROW)
    array = memory.array(0, np.uint8, (ROW,))
    array[:] = 1
    before = Path("/proc/self/maps").read_text().count("hermes-kv")
    del array
    memory.close()
    assert Path("/proc/self/maps").read_text().count("hermes-kv") == before - 1
