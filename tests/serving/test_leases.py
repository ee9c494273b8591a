"""Keys, holds and leases without a Triton: whoever goes takes the request along, in whatever order things come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

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
    with leases.taken(Lease(KEY, None), ended.set) as let_go:
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
    with leases.taken(Lease(KEY, None), lambda: None) as let_go:
        assert let_go()


def test_a_hold_ends_with_its_request(leases: Leases) -> None:
    holder = Sender()
    with leases.taken(Lease(KEY, None), lambda: None):
        leases.hold(KEY, holder)
        assert not holder.done.is_set()
    assert holder.done.is_set()
    assert holder.sent == []


def test_a_lease_ends_a_request_that_nobody_holds_and_no_other(leases: Leases) -> None:
    ended, held, free = threading.Event(), threading.Event(), threading.Event()
    leases.hold("h" * 32, Sender())
    with (
        leases.taken(Lease(KEY, 0.1), ended.set),
        leases.taken(Lease("h" * 32, 0.1), held.set),
        leases.taken(Lease("f" * 32, None), free.set),
    ):
        assert ended.wait(10)
        time.sleep(0.3)
        assert not held.is_set()
        assert not free.is_set()


def test_a_key_cancels_its_own_request_once(leases: Leases) -> None:
    mine, other = threading.Event(), threading.Event()
    with leases.taken(Lease(KEY, None), mine.set), leases.taken(Lease("o" * 32, None), other.set):
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
        leases.taken(Lease(KEY, None), lambda: None),
        pytest.raises(RequestError, match="random one of its own: a request with it is running"),
        leases.taken(Lease(KEY, None), lambda: None),
    ):
        pass


def test_a_request_without_a_key_is_left_alone(leases: Leases) -> None:
    with leases.taken(None, lambda: pytest.fail("nobody can end it")) as let_go:
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
