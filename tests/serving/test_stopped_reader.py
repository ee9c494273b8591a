"""A caller that asks for a long answer and reads none of it: nobody else notices, and nothing stays behind.

It is there, so its lease is renewed; its answer waits in buffers and its slot is free when that has its last token.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest

from hermes_deploy.client import Client
from hermes_deploy.protocol.tensors import ENSEMBLE
from hermes_deploy.serving import Server
from hermes_deploy.serving.metrics import INTERVAL
from tests.serving.processes import all_gone, eventually
from tests.serving.test_cancel_ensemble import running
from tests.serving.test_metrics import scrape

TOKENS = 6000
MOST_MEMORY = 256 << 20
"""Bytes by which all processes together may grow; the three answers are some millions."""


@pytest.fixture
def server(artifact: Path) -> Iterator[Server]:
    with Server(artifact, grpc_port=0, http_port=0, metrics_port=0) as started:
        yield started


def ask_over_http(server: Server) -> socket.socket:
    """With little room in the kernel, so that most of the answer cannot leave the server."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", server.http_port))
    messages = json.dumps([{"role": "user", "content": "hello"}])
    body = json.dumps({"messages": messages, "max_tokens": TOKENS, "temperature": 0.0}).encode()
    head = f"POST /v2/models/{ENSEMBLE}/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def processes(server: Server) -> list[psutil.Process]:
    assert server._guard is not None
    guard = psutil.Process(server._guard.pid)
    return [guard, *guard.children(recursive=True)]


def memory(server: Server) -> int:
    """Of the server, and of this process, in which the doorman is."""
    return sum(process.memory_info().rss for process in [psutil.Process(), *processes(server)])


def all_of(connection: socket.socket) -> bytes:
    pieces = []
    while data := connection.recv(1 << 20):
        pieces.append(data)
    return b"".join(pieces)


def test_callers_that_read_nothing_disturb_nobody_and_find_their_answers_whole(server: Server) -> None:
    started = processes(server)
    with Client(server.endpoints.grpc) as other, Client(server.endpoints.grpc) as stopped, ExitStack() as stack:

        def answer() -> tuple[str, ...]:
            return tuple(other.ask("next", door=d, max_tokens=50, temperature=0.0).text for d in ("chat", "ensemble"))

        alone, before = answer(), memory(server)
        chat, ensemble = [
            stack.enter_context(stopped.stream("hello", door=door, max_tokens=TOKENS, temperature=0.0))
            for door in ("chat", "ensemble")
        ]
        http = stack.enter_context(closing(ask_over_http(server)))
        assert eventually(lambda: running(server) > 0)
        beside, deadline = 0, time.monotonic() + 60
        while running(server):
            assert answer() == alone
            beside += 1
            assert time.monotonic() < deadline, "a slot is held by one that does not read"
        assert beside > 1, "too fast to show anything"
        assert memory(server) - before < MOST_MEMORY
        time.sleep(1.2 * INTERVAL)
        seen = scrape(server)
        assert (seen["hermes_active_slots"], seen["hermes_queue_depth"]) == (0, 0)
        assert answer() == alone

        assert chat.result().usage.completion_tokens == TOKENS
        last = all_of(http).rpartition(b"data: ")[2]
        assert (b'"finish_reason":"length"' in last, f'"completion_tokens":{TOKENS}'.encode() in last) == (True, True)

        # one of them never reads, and the server goes all the same
        server.stop()
        assert all_gone(started)
        assert not ensemble.text
