"""What keeps leases alive: one small call for all streams, a thread that is there only while something streams."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from hermes_deploy.client.renewals import RENEWED_AT_ONCE, Renewals

WAIT = 20.0
PERIOD = 0.05


class Engine:
    """What would hear of the keys; fails while it is told to."""

    def __init__(self) -> None:
        self.calls: queue.Queue[list[str]] = queue.Queue()
        self.failing: Exception | None = None
        self.renewals = Renewals(self.renew, PERIOD)

    def renew(self, keys: Sequence[str], timeout_s: float) -> None:
        assert timeout_s == PERIOD, "a call that takes longer would be in the way of the next"
        self.calls.put(list(keys))
        if self.failing is not None:
            raise self.failing

    def heard(self) -> list[str]:
        """The next call, not one that came before."""
        while not self.calls.empty():
            self.calls.get()
        return self.calls.get(timeout=WAIT)


OTHERS: set[threading.Thread] = set()
"""Of clients of other tests, which may take a moment to end."""


@pytest.fixture
def engine() -> Iterator[Engine]:
    OTHERS.clear()
    OTHERS.update(threads())
    made = Engine()
    yield made
    made.renewals.close()
    assert no_thread(), "its thread outlives it"


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lease-renewals" and thread not in OTHERS]


def no_thread() -> bool:
    deadline = time.monotonic() + WAIT
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not threads()


def test_many_streams_are_renewed_in_one_call_again_and_again(engine: Engine) -> None:
    keys = [f"{number:032}" for number in range(100)]
    for key in keys:
        engine.renewals.add(key)
    assert len(threads()) == 1
    assert engine.heard() == keys
    assert engine.heard() == keys


def test_more_than_one_call_takes_are_renewed_in_several(engine: Engine) -> None:
    keys = {f"{number:032}" for number in range(RENEWED_AT_ONCE + 1)}
    for key in keys:
        engine.renewals.add(key)
    seen: set[str] = set()
    while seen != keys:
        some = engine.calls.get(timeout=WAIT)
        assert 1 <= len(some) <= RENEWED_AT_ONCE
        seen |= set(some)


def test_what_has_ended_is_not_renewed_any_more_and_the_rest_is(engine: Engine) -> None:
    engine.renewals.add("a")
    engine.renewals.add("b")
    assert engine.heard() == ["a", "b"]
    engine.renewals.drop("a")
    engine.heard()  # it may have been on its way
    assert engine.heard() == ["b"]
    engine.renewals.drop("a")  # whoever ends twice does no harm
    assert engine.heard() == ["b"]


def test_while_nothing_streams_nothing_is_sent_and_no_thread_is_left(engine: Engine) -> None:
    assert no_thread()
    engine.renewals.add("a")
    engine.heard()
    engine.renewals.drop("a")
    assert no_thread()
    sent = engine.calls.qsize()
    time.sleep(4 * PERIOD)
    assert engine.calls.qsize() == sent
    engine.renewals.add("b")
    assert engine.heard() == ["b"], "it begins again with the next stream"


def test_closing_ends_it_at_once_and_for_good() -> None:
    assert no_thread()  # a client of another test may have had one
    renewals = Renewals(lambda *_: None, period=3600.0)
    renewals.add("a")
    assert len(threads()) == 1
    renewals.close()
    assert no_thread()
    renewals.add("b")
    assert threads() == []


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("can't start new thread")])
def test_a_call_that_fails_is_told_and_the_next_one_comes_all_the_same(
    engine: Engine, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    engine.failing = error
    engine.renewals.add("secret-key")
    engine.heard()
    engine.heard()
    engine.failing = None
    assert engine.heard() == ["secret-key"]
    assert f"leases were not renewed, which is tried again in {PERIOD:g} s: {error!r}" in caplog.text
    assert "secret-key" not in caplog.text
