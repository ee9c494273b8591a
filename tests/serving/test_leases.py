"""Keys, holds and leases without a Triton: whoever goes takes the request along, in whatever order things come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from hermes_deploy.errors import RequestError
from hermes_deploy.serving import leases as module
from hermes_deploy.serving.leases import Lease, Leases
from tests.serving import fake_triton
from tests.serving.fake_triton import Sender
from tests.serving.processes import eventually

KEY = "k" * 32


@pytest.fixture
def leases() -> Iterator[Leases]:
    made = Leases(fake_triton, most=4)
    yield made
    made.close()


def test_a_hold_whose_caller_goes_ends_the_request(leases: Leases) -> None:
    holder, ended = Sender(), threading.Event()
    leases.hold(KEY, holder)
    with leases.taken(Lease(KEY, None), lambda _: ended.set()) as let_go:
        time.sleep(4 * module.POLL)
        assert not ended.is_set()
        assert not let_go()
        holder.cancelled = True
        assert ended.wait(10)
    assert holder.done.is_set(), "Triton keeps a call that nobody ends"


def test_a_caller_that_had_gone_before_its_request_came_has_it_ended_at_once(leases: Leases) -> None:
    holder = Sender(cancelled=True)
    leases.hold(KEY, holder)
    assert holder.done.wait(10)
    with leases.taken(Lease(KEY, None), lambda _: None) as let_go:
        assert let_go()


def test_a_hold_ends_with_its_request(leases: Leases) -> None:
    holder = Sender()
    with leases.taken(Lease(KEY, None), lambda _: None):
        leases.hold(KEY, holder)
        assert not holder.done.is_set()
    assert holder.done.is_set()
    assert holder.sent == []


def test_a_lease_ends_a_request_that_nobody_renews_and_no_other(leases: Leases) -> None:
    told: list[str] = []
    renewed, held, free = threading.Event(), threading.Event(), threading.Event()
    with (
        leases.taken(Lease(KEY, 0.5), told.append),
        leases.taken(Lease("r" * 32, 0.5), lambda _: renewed.set()),
        leases.taken(Lease("h" * 32, 0.5), lambda _: held.set()),
        leases.taken(Lease("f" * 32, None), lambda _: free.set()),
    ):
        # a hold stays open where the machine behind it is gone: it renews nothing
        leases.hold("h" * 32, Sender())
        until = time.monotonic() + 2
        while time.monotonic() < until:
            leases.renew(["r" * 32, "of nobody" * 3])
            time.sleep(0.02)
        assert [words for words in told if "nobody renewed its lease for 0.5 s" in words] == told != []
        assert held.is_set()
        assert not renewed.is_set()
        assert not free.is_set()


def test_time_in_which_the_process_did_not_run_is_not_the_callers(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, clock = threading.Event(), [time.monotonic()]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=time.sleep))
    with leases.taken(Lease(KEY, 3.0), lambda _: ended.set()):
        clock[0] += 3600
        time.sleep(3 * module.LEASE_POLL)
        assert not ended.is_set()
        for _ in range(40):
            clock[0] += 0.5
            time.sleep(module.LEASE_POLL / 4)
        assert ended.wait(10)


def test_a_key_cancels_its_own_request_once(leases: Leases) -> None:
    mine, other = threading.Event(), threading.Event()
    with (
        leases.taken(Lease(KEY, None), lambda _: mine.set()),
        leases.taken(Lease("o" * 32, None), lambda _: other.set()),
    ):
        leases.cancel(KEY)
        assert mine.is_set()
        assert not other.is_set()
        with pytest.raises(RequestError, match="no request with this cancel_key") as again:
            leases.cancel(KEY)
    assert again.value.code == "NOT_FOUND"
    with pytest.raises(RequestError):
        leases.cancel("o" * 32)


def test_a_key_names_one_request_and_has_one_holder(leases: Leases) -> None:
    leases.hold(KEY, Sender())
    with pytest.raises(RequestError, match="is held already"):
        leases.hold(KEY, Sender())
    with (
        leases.taken(Lease(KEY, None), lambda _: None),
        pytest.raises(RequestError, match="random one of its own: a request with it is running"),
        leases.taken(Lease(KEY, None), lambda _: None),
    ):
        pass


def test_a_request_without_a_key_is_left_alone(leases: Leases) -> None:
    with leases.taken(None, lambda _: pytest.fail("nobody can end it")) as let_go:
        assert not let_go()


def test_a_hold_for_nothing_is_told_so_and_forgotten(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY", 0.1)
    holder = Sender()
    leases.hold(KEY, holder)
    assert holder.done.wait(10)
    assert holder.sent[0].error is not None
    assert str(holder.sent[0].error).startswith("NOT_FOUND: no request came")
    assert eventually(lambda: not leases._kept)


def test_keys_are_bounded_in_number(leases: Leases) -> None:
    for number in range(4):
        leases.hold(f"{number:032}", Sender())
    with pytest.raises(RequestError) as refused:
        leases.hold(KEY, Sender())
    assert refused.value.code == "RESOURCE_EXHAUSTED"


def test_closing_ends_every_hold() -> None:
    leases, holder = Leases(fake_triton, most=4), Sender()
    leases.hold(KEY, holder)
    leases.close()
    assert holder.done.is_set()
