"""Whatever decodes with whatever, a slot's row holds what its owner wrote, and a batch lies together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.runtime.sessions.row_layout import Exchange, RowLayout
from hermes_deploy.runtime.sessions.row_memory import ALIGNMENT, HostMemory, RowCaches, pieces

SLOTS, LENGTH, HEADS, WIDTH = 5, 12, 2, 4

Slot = st.integers(0, SLOTS - 1)
Span = st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)).map(sorted).map(tuple)
Write = st.tuples(st.just("write"), Slot, Span)
Copy = st.tuples(st.just("copy"), st.tuples(Slot, Slot), Span)
Decode = st.tuples(st.just("decode"), st.lists(Slot, min_size=1, unique=True), st.none())


class Rows:
    """Two caches moved as a session moves them, beside a model: for each slot the numbers that were written."""

    def __init__(self) -> None:
        self.layout = RowLayout(SLOTS)
        self.caches = RowCaches(HostMemory(), ["key", "value"], SLOTS, (HEADS, LENGTH, WIDTH), np.float32)
        self.model: list[dict[int, float]] = [{} for _ in range(SLOTS)]
        self.written = 0

    def view(self, name: str, slot: int) -> npt.NDArray[np.float32]:
        """[heads, length, width]"""
        address = self.caches.address(name, self.layout.row(slot))
        flat = pieces(address, self.caches.row_bytes, self.caches.row_bytes, 1)
        return flat.view(np.float32).reshape(HEADS, LENGTH, WIDTH)

    def write(self, slot: int, start: int, end: int) -> None:
        if start == 0 and end > 0:
            self.model[slot] = {}
        for position in range(start, end):
            self.written += 1
            self.model[slot][position] = self.written
            for sign, name in ((1, "key"), (-1, "value")):
                self.view(name, slot)[:, position] = sign * self.written
        if end > start:
            self.layout.wrote(slot, start, end - start)

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        if end == start or source == target:
            return
        self.caches.copy(self.layout.row(source), self.layout.row(target), start, end - start)
        self.layout.wrote(target, start, end - start)
        kept = {} if start == 0 else {at: n for at, n in self.model[target].items() if not start <= at < end}
        self.model[target] = kept | {at: n for at, n in self.model[source].items() if start <= at < end}

    def decode(self, slots: Sequence[int]) -> None:
        for move in self.layout.gather(slots):
            self.caches.exchange(move)
            self.layout.exchanged(move)
        rows = sorted(self.layout.row(slot) for slot in slots)
        assert rows == list(range(rows[0], rows[0] + len(slots)))
        assert self.layout.gather(slots) == []

    def check(self) -> None:
        assert sorted(self.layout.row(slot) for slot in range(SLOTS)) == list(range(SLOTS))
        for slot, content in enumerate(self.model):
            for position, number in content.items():
                assert (self.view("key", slot)[:, position] == number).all()
                assert (self.view("value", slot)[:, position] == -number).all()


@given(st.lists(Write | Copy | Decode, max_size=40))
def test_after_any_calls_every_slot_holds_what_its_owner_wrote(calls: list[tuple[str, object, object]]) -> None:
    rows = Rows()
    for kind, who, span in calls:
        if kind == "decode":
            rows.decode(who)  # type: ignore[arg-type]
        elif kind == "copy":
            rows.copy(*who, *span)  # type: ignore[misc]
        else:
            rows.write(who, *span)  # type: ignore[arg-type, misc]
        rows.check()


@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=7).flatmap(
        lambda lengths: st.tuples(st.just(lengths), st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True))
    )
)
def test_no_other_place_for_the_batch_would_move_fewer_tokens(case: tuple[list[int], list[int]]) -> None:
    lengths, slots = case
    layout = RowLayout(len(lengths))
    for slot, length in enumerate(lengths):
        layout.wrote(slot, 0, length)
    moves = layout.gather(slots)
    moved = sum(max(1, move.one_tokens) + max(1, move.other_tokens) for move in moves)
    for first in range(len(lengths) - len(slots) + 1):
        window = set(range(first, first + len(slots)))
        assert moved <= sum(max(1, lengths[row]) for row in window ^ set(slots))


def test_a_batch_that_lies_together_moves_nothing_in_whatever_order_it_is_named() -> None:
    layout = RowLayout(8)
    for slots in ([0], [2, 3, 4], [4, 2, 3], list(range(8))):
        assert layout.gather(slots) == []


def test_one_exchange_serves_every_step_of_the_same_chats() -> None:
    layout = RowLayout(4)
    for slot in range(4):
        layout.wrote(slot, 0, 10 * (slot + 1))
    (move,) = layout.gather([0, 2])
    assert move == Exchange(one=1, other=0, one_tokens=20, other_tokens=10)
    layout.exchanged(move)
    assert layout.gather([0, 2]) == layout.gather([2]) == layout.gather([1, 0, 2]) == []


def test_a_row_remembers_the_furthest_token_until_a_new_chat_begins_in_it() -> None:
    layout = RowLayout(2)
    layout.wrote(1, 0, 9)
    layout.wrote(1, 4, 2)
    assert layout.length(1) == 9
    layout.wrote(1, 0, 3)
    assert layout.length(1) == 3


def test_rows_begin_where_an_engine_can_take_them_and_caches_begin_as_zeros() -> None:
    caches = RowCaches(HostMemory(), ["key"], 3, (2, 32, 16), np.float16)
    assert [caches.address("key", row) % ALIGNMENT for row in range(3)] == [0, 0, 0]
    assert not pieces(caches.address("key", 0), caches.row_bytes, caches.row_bytes, 3).any()
    assert (caches.token_bytes, caches.row_bytes) == (2 * 16 * 2, 2 * 32 * 16 * 2)


def test_copying_touches_those_positions_of_each_head_and_nothing_else() -> None:
    caches = RowCaches(HostMemory(), ["key", "value"], 3, (2, 8, 4), np.float16)
    views = {
        name: pieces(caches.address(name, 0), caches.row_bytes, caches.row_bytes, 3).view(np.float16)
        for name in caches.names
    }
    rng = np.random.default_rng(0)
    for view in views.values():
        view[:] = rng.normal(size=view.shape)
    before = {name: view.reshape(3, 2, 8, 4).copy() for name, view in views.items()}
    caches.copy(2, 0, 3, 4)
    for name, view in views.items():
        before[name][0, :, 3:7] = before[name][2, :, 3:7]
        np.testing.assert_array_equal(view.reshape(3, 2, 8, 4), before[name])
