"""Which rows a decode step runs together, and on how many threads."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.runtime.ort_cpu import physical_cores, row_ranges


@given(st.sets(st.integers(0, 63), min_size=1))
def test_every_slot_is_in_exactly_one_range_and_no_long_gap_is_computed(slots: set[int]) -> None:
    ranges = row_ranges(list(slots))
    assert sorted(row for r in ranges for row in r.wanted) == sorted(slots)
    covered = [row for r in ranges for row in range(r.first, r.first + r.count)]
    assert len(covered) == len(set(covered))
    for r in ranges:
        assert sorted((*r.wanted, *r.unwanted)) == list(range(r.first, r.first + r.count))
        assert {r.first, r.first + r.count - 1} <= set(r.wanted)
        assert len(r.unwanted) <= 3 * (len(r.wanted) - 1)


def test_neighbours_run_together_and_distant_rows_apart() -> None:
    assert [(r.first, r.count) for r in row_ranges([7, 1, 0])] == [(0, 2), (7, 1)]
    assert [(r.first, r.count) for r in row_ranges([0, 4])] == [(0, 5)]


def test_threads_never_exceed_the_cores_this_process_may_use() -> None:
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))
