"""Through the ensemble, which hears of no cancellation: whoever cancels, closes, crashes or is late frees the slot.

On a real Triton; the loop's own counts say what has ended, and as what.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from hermes_deploy.client import Cancelled, Client, DeadlineExceeded, InvalidRequest
from hermes_deploy.client.stream import Stream
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE, MODELS
from hermes_deploy.serving import Server
from hermes_deploy.serving.control import ask
from hermes_deploy.serving.metrics import INTERVAL
from tests.serving.artifact import MAX_CONTEXT, MAX_SLOTS
from tests.serving.processes import eventually
from tests.serving.raw_requests import failure, over_http, send, text
from tests.serving.test_metrics import scrape

MESSAGES = json.dumps([{"role": "user", "content": "hello"}])
KEY = "0123456789abcdef" * 2
CANCELLED = "hermes_cancellations_total"


@pytest.fixture(autouse=True)
def nothing_runs(server: Server) -> Iterator[None]:
    """Before and after: what another test left would be mistaken for one's own."""
    assert eventually(lambda: running(server) == 0)
    time.sleep(1.2 * INTERVAL)  # the counts that a test compares are copied that often
    yield
    assert eventually(lambda: running(server) == 0), "something was not ended"


def running(server: Server) -> int:
    engine = ask(server.control, "status")
    return engine.active + engine.waiting


def endless(client: Client, **options: Any) -> Stream:
    return client.stream("hello", door="ensemble", max_tokens=MAX_CONTEXT, temperature=0.0, **options)


def cancel(stream: Stream) -> None:
    threading.Timer(0.05, stream.cancel).start()
    with pytest.raises(Cancelled):
        stream.result()


@pytest.mark.parametrize("let_go", [cancel, Stream.close], ids=["cancel", "close"])
def test_one_that_lets_go_frees_its_slot_and_only_its_own(
    server: Server, client: Client, let_go: Callable[[Stream], None]
) -> None:
    before = scrape(server)[CANCELLED]
    with ExitStack() as stack:
        streams = [stack.enter_context(endless(client)) for _ in range(MAX_SLOTS)]
        for stream in streams:
            next(stream)
        let_go(streams[0])
        # without a free slot this would wait for its own timeout
        assert client.ask("next", door="ensemble", max_tokens=2, temperature=0.0, timeout=60).text
        assert all(next(stream).finish_reason is None for stream in streams[1:])
    assert eventually(lambda: scrape(server)[CANCELLED] == before + MAX_SLOTS)


def test_one_that_waits_in_the_queue_can_be_let_go(server: Server, client: Client) -> None:
    with ExitStack() as stack:
        for stream in [stack.enter_context(endless(client)) for _ in range(MAX_SLOTS)]:
            next(stream)
        waiting = endless(client)
        assert eventually(lambda: ask(server.control, "status").waiting == 1)
        waiting.close()
        assert eventually(lambda: ask(server.control, "status").waiting == 0)
        assert ask(server.control, "status").active == MAX_SLOTS


def test_one_that_is_late_is_ended(server: Server, client: Client) -> None:
    with endless(client, timeout=0.5) as stream, pytest.raises(DeadlineExceeded):
        stream.result()
    assert eventually(lambda: running(server) == 0)


CRASHING = """
import sys, time
from hermes_deploy.client import Client
stream = Client(sys.argv[1]).stream("hello", door="ensemble", max_tokens=int(sys.argv[2]), temperature=0.0)
next(stream)
print("begun", flush=True)
for piece in stream: pass
"""


def test_a_client_that_is_killed_frees_its_slot(server: Server) -> None:
    before = scrape(server)[CANCELLED]
    arguments = [sys.executable, "-c", CRASHING, server.endpoints.grpc, str(MAX_CONTEXT)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as crashing:
        assert crashing.stdout is not None
        assert crashing.stdout.readline() == "begun\n"
        crashing.send_signal(signal.SIGKILL)
    assert eventually(lambda: scrape(server)[CANCELLED] == before + 1)


def test_a_client_that_goes_at_once_leaves_nothing_behind(server: Server) -> None:
    for _ in range(10):
        with Client(server.endpoints.grpc) as client:
            endless(client).close()
    # its lease may be what ends it: no hold came
    assert eventually(lambda: running(server) == 0)


def test_without_a_key_triton_does_not_tell_that_the_caller_has_gone(
    server: Server, raw: triton.InferenceServerClient
) -> None:
    before = scrape(server)[CANCELLED]
    raw.start_stream(lambda result, error: None)  # noqa: ARG005 - the names are Triton's
    inputs = [
        tensor("messages", text(MESSAGES.encode())),
        tensor("max_tokens", np.array([MAX_CONTEXT], np.int32)),
        tensor("timeout_ms", np.array([1500], np.int32)),
    ]
    raw.async_stream_infer(ENSEMBLE, inputs)
    assert eventually(lambda: running(server) == 1)
    raw.stop_stream(cancel_requests=True)
    assert eventually(lambda: running(server) == 0), "its own deadline bounds it"
    assert scrape(server)[CANCELLED] == before


def tensor(name: str, array: Any) -> triton.InferInput:
    kinds = {t.name: t.dtype for t in MODELS[ENSEMBLE].inputs}
    made = triton.InferInput(name, list(array.shape), kinds[name])
    made.set_data_from_numpy(array)
    return made


def test_a_request_over_http_is_cancelled_by_its_key(server: Server) -> None:
    body = {"messages": MESSAGES, "max_tokens": MAX_CONTEXT, "temperature": 0.0, "cancel_key": KEY}
    for model in (ENSEMBLE, ENGINE):
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(over_http, server, model, body)
            assert eventually(lambda: running(server) == 1)
            assert over_http(server, ENGINE, {"cancel": "x" * 32})[0] != 200
            # the gauge is a second old: it may speak of the request before
            assert eventually(lambda: over_http(server, ENGINE, {"cancel": KEY})[0] == 200)
            last = asked.result(60)[1][-1]
            assert last.get("finish_reason") == "cancelled", last


def test_a_lease_that_nobody_takes_ends_the_request(server: Server) -> None:
    body = {"messages": MESSAGES, "max_tokens": MAX_CONTEXT, "temperature": 0.0, "cancel_key": KEY, "lease_ms": 200}
    assert over_http(server, ENSEMBLE, body)[1][-1]["finish_reason"] == "cancelled"


def test_a_hold_that_loses_its_request_to_a_refusal_ends_too(client: Client) -> None:
    for _ in range(3):
        with pytest.raises(InvalidRequest):
            client.ask("hello", door="ensemble", temperature=1e6)
        with pytest.raises(InvalidRequest):
            client.ask([{"role": "user", "content": "x" * (MAX_CONTEXT + 1)}], door="ensemble")
    assert client.ask("hello", door="ensemble", max_tokens=2).usage.completion_tokens == 2


def test_what_is_wrong_with_a_key_is_said(raw: triton.InferenceServerClient) -> None:
    messages = text(MESSAGES.encode())
    for inputs, words in (
        ({"messages": messages, "cancel_key": text(b"short")}, "cancel_key has 5 characters"),
        ({"messages": messages, "lease_ms": np.array([5], np.int32)}, "lease_ms without cancel_key"),
        (
            {"messages": messages, "cancel_key": text(KEY.encode()), "lease_ms": np.array([0], np.int32)},
            "lease_ms is 0; allowed is 1 to",
        ),
        ({"messages": messages, "hold": text(KEY.encode())}, "found hold with messages"),
        ({"cancel": text(KEY.encode()), "hold": text(KEY.encode())}, "found hold with cancel"),
        ({"hold": text(b"")}, "hold has 0 characters"),
    ):
        code, message = failure(raw, ENGINE, **inputs)
        assert (code, words in message) == ("INVALID_ARGUMENT", True), message
    code, message = failure(raw, ENGINE, cancel=text(b"x" * 32))
    assert (code, "no request with this cancel_key" in message) == ("NOT_FOUND", True)


def test_a_key_on_the_direct_door_changes_nothing_else(raw: triton.InferenceServerClient) -> None:
    pieces = send(raw, ENGINE, messages=text(MESSAGES.encode()), cancel_key=text(KEY.encode()))
    assert pieces[-1]["finish_reason"].tolist() == [b"length"]
