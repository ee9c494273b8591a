"""SIGTERM under load: readiness goes off, who comes is refused with a hint, who is there ends in so many words."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from hermes_deploy.client import Client, ClientError
from hermes_deploy.protocol.tensors import ENSEMBLE
from hermes_deploy.serving import Server
from hermes_deploy.serving.drain import Draining
from tests.serving.artifact import MAX_SLOTS
from tests.serving.processes import eventually
from tests.serving.serve_process import ServeProcess, serving

DOORS = ("chat", "ensemble")
WAYS = (*DOORS, "http", "ensemble")
"""How an answer in each slot is asked for; "http": the ensemble through Triton's generate_stream."""


@dataclass(frozen=True)
class Ended:
    """`reason`: finish_reason of the answer, or the error's words."""

    reason: str
    tokens: int


def read(said: dict[str, str], way: Any, tokens: int, started: threading.Barrier) -> Ended:
    if way == "http":
        return read_http(said["http"], tokens, started)
    count = 0
    with Client(said["grpc"]) as client:
        try:
            with client.stream("hello", door=way, max_tokens=tokens, temperature=0.0) as stream:
                for piece in stream:
                    if not count:
                        started.wait(30)
                    count += len(piece.token_ids)
                return Ended(stream.result().finish_reason, count)
        except ClientError as error:
            return Ended(str(error), count)


def read_http(url: str, tokens: int, started: threading.Barrier) -> Ended:
    messages = json.dumps([{"role": "user", "content": "hello"}])
    body = json.dumps({"messages": messages, "max_tokens": tokens, "temperature": 0.0})
    request = urllib.request.Request(f"{url}/v2/models/{ENSEMBLE}/generate_stream", body.encode())
    last = b""
    # a connection that is cut leaves the last piece that came
    with suppress(OSError, http.client.HTTPException), urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                if not last:
                    started.wait(30)
                last = line  # read later: a reader that is slow leaves its answer in Triton's buffers
    event = json.loads(last.removeprefix(b"data: "))
    return Ended(event.get("error_message") or event["finish_reason"], event["completion_tokens"])


@contextmanager
def load(said: dict[str, str], tokens: int) -> Iterator[list[Future[Ended]]]:
    """An answer in every slot, through every door; entered when all of them have begun."""
    started = threading.Barrier(MAX_SLOTS + 1)
    with ThreadPoolExecutor(MAX_SLOTS) as pool:
        asked = [pool.submit(read, said, way, tokens, started) for way in WAYS]
        started.wait(30)
        yield asked


def test_without_draining_triton_cuts_ensemble_streams(artifact: Path) -> None:
    with (
        Server(artifact, grpc_port=0, http_port=0, metrics_port=0) as server,
        load(asdict(server.endpoints), tokens=8000) as answers,
    ):
        server.stop()
        ended = [answer.result(60) for answer in answers]
    assert ended[WAYS.index("http")].reason == "", "cut without a word"
    assert all(answer.tokens < 8000 for answer, way in zip(ended, WAYS, strict=True) if way != "chat"), ended


def test_whoever_runs_finishes_and_whoever_comes_is_told_when_to_come_back(artifact: Path) -> None:
    with serving(artifact) as served, load(served.said, tokens=4000) as answers:
        served.process.terminate()
        assert eventually(lambda: not served.ready())
        assert not any(answer.done() for answer in answers), "too fast to show anything"
        assert_refused(served)
        assert served.health("/livez")[0] == 200
        ended = [answer.result(60) for answer in answers]
        assert_clean_end(served)
    assert [(answer.reason, answer.tokens) for answer in ended] == [("length", 4000)] * MAX_SLOTS


def assert_clean_end(served: ServeProcess) -> None:
    status, told = served.end()
    assert status == 0, told


def assert_refused(served: ServeProcess) -> None:
    for door in DOORS:
        with Client(served.grpc) as client, pytest.raises(ClientError, match="Retry after 5 s") as refused:
            # readiness goes off a moment before the engine hears of it
            for _ in range(20):
                client.ask("hello", door=door, max_tokens=1)
        assert (refused.value.code, refused.value.retry_after_s) == ("UNAVAILABLE", 5.0)


def test_whoever_runs_too_long_is_told_so_in_band(artifact: Path) -> None:
    with serving(artifact, drain_timeout=0.5) as served, load(served.said, tokens=8000) as answers:
        served.process.terminate()
        ended = [answer.result(60) for answer in answers]
        assert_clean_end(served)
    for answer in ended:
        assert "did not end within the 0.5 s" in answer.reason, answer
        assert 0 < answer.tokens < 8000


def test_a_second_signal_cuts_short_and_still_tells(artifact: Path) -> None:
    with serving(artifact, drain_timeout=300) as served, load(served.said, tokens=8000) as answers:
        served.process.terminate()
        assert eventually(lambda: not served.ready())
        time.sleep(0.3)
        served.process.terminate()
        ended = [answer.result(60) for answer in answers]
        assert_clean_end(served)
    assert all("told twice to stop" in answer.reason for answer in ended), ended


def begin_slowly(server: Server, tokens: int) -> socket.socket:
    """Asks over HTTP, with so little room in the kernel that the answer has to wait in the server."""
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.settimeout(60)
    slow.connect(("127.0.0.1", server.http_port))
    messages = json.dumps([{"role": "user", "content": "hello"}])
    body = json.dumps(
        {"messages": messages, "max_tokens": tokens, "temperature": 0.0, "logprobs": 20, "n": MAX_SLOTS}
    ).encode()
    head = f"POST /v2/models/{ENSEMBLE}/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    slow.sendall(head.encode() + body)
    return slow


def read_rest(slow: socket.socket, go_on: threading.Event) -> bytes:
    assert go_on.wait(60)
    pieces = []
    with suppress(ConnectionResetError):
        while data := slow.recv(1 << 16):
            pieces.append(data)
    return b"".join(pieces)


@pytest.mark.parametrize("seen", [False, True])
def test_an_answer_over_http_that_is_read_late_is_whole_where_the_drain_sees_it(artifact: Path, seen: bool) -> None:
    go_on = threading.Event()
    with (
        Server(artifact, grpc_port=0, http_port=0, metrics_port=0) as server,
        begin_slowly(server, tokens=2200) as slow,
        ThreadPoolExecutor(1) as pool,
    ):
        assert slow.recv(1000)
        reading = pool.submit(read_rest, slow, go_on)
        draining = Draining(
            server.control, server.inside.metrics, lambda: server.owing if seen else 0, server.grpc_port
        )
        assert draining.refuse() == MAX_SLOTS
        assert draining.emptied(time.monotonic() + 60) == 0
        if seen:
            threading.Timer(2.5, go_on.set).start()  # Triton's counters stand still long before
        assert draining.settled(time.monotonic() + 60)
        server.stop()
        go_on.set()
        ended = reading.result(60).count(b'"finish_reason":"length"')
    assert (ended == MAX_SLOTS) is seen
