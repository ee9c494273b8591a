"""Callers that abuse the ports of a running `serve`, and what can be seen of what they cost."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import psutil

from hermes_deploy.client import Client
from hermes_deploy.protocol.tensors import ENGINE
from tests.serving.serve_process import ServeProcess

GENERATE = f"/v2/models/{ENGINE}/generate".encode()
HALF_HEAD = b"POST " + GENERATE + b" HTTP/1.1\r\nHo"
HALF_BODY = b"POST " + GENERATE + b' HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{"mess'
STARTS = (b"", b"POST / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HALF_BODY)
DOORS = ("chat", "ensemble", "http")
Address = tuple[str, int]


def address(url: str) -> Address:
    host, _, port = url.removeprefix("http://").partition("/")[0].partition(":")
    return host, int(port)


def past_the_doorman(served: ServeProcess, flag: str = "--http-port=") -> Address:
    """Where Triton itself listens: what would be without the protection."""
    command = served.find("tritonserver").cmdline()
    return "127.0.0.1", int(next(part for part in command if part.startswith(flag)).removeprefix(flag))


def deep_json() -> bytes:
    body = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    return b"POST " + GENERATE + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def many_chunks() -> bytes:
    head = b"POST " + GENERATE + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"1\r\n \r\n" * 700_000 + b"0\r\n\r\n"


def large_prompt() -> bytes:
    """100 MB of it."""
    chat = json.dumps([{"role": "user", "content": "a" * 100_000_000}])
    body = json.dumps({"messages": chat}).encode()
    return b"POST " + GENERATE + b"_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def say(to: Address, data: bytes) -> bytes:
    """The beginning of the answer, with its body where that comes soon; empty when the connection is cut."""
    said = b""
    with socket.create_connection(to, timeout=60) as connection, suppress(OSError):
        connection.sendall(data)
        said = connection.recv(1000)
        connection.settimeout(2)
        while said and not said.partition(b"\r\n\r\n")[2] and (more := connection.recv(1000)):
            said += more
    return said


@contextmanager
def held_open(to: Address, count: int, data: bytes = b"") -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(to, timeout=10))
            with suppress(OSError):
                connection.sendall(data)
        yield


def say_nonsense(to: Address, count: int = 60) -> None:
    chance = random.Random(to[1] % 7)
    for i in range(count):
        with suppress(OSError), socket.create_connection(to, timeout=10) as connection:
            connection.sendall(STARTS[i % len(STARTS)] + chance.randbytes(chance.choice((1, 10, 1000, 100_000))))


@dataclass(frozen=True)
class Cost:
    """Of `serve`, tritonserver and the models together. `memory`: MB, shared memory once for each that maps it."""

    files: int
    threads: int
    memory: int


def cost(served: ServeProcess) -> Cost:
    files = threads = memory = 0
    for process in (psutil.Process(served.process.pid), *served.started()):
        files += process.num_fds()
        threads += process.num_threads()
        memory += process.memory_info().rss >> 20
    return Cost(files, threads, memory)


def ask(served: ServeProcess, door: str) -> str:
    """The same answer every time."""
    if door == "http":
        body = {"messages": json.dumps([{"role": "user", "content": "hello"}]), "max_tokens": 200, "temperature": 0.0}
        request = urllib.request.Request(served.said["http"] + GENERATE.decode() + "_stream", json.dumps(body).encode())
        try:
            opened = urllib.request.urlopen(request, timeout=60)
        except (urllib.error.URLError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code != 503:
                raise
            raise TurnedAway from error
        with opened as answer:
            events = [json.loads(line[6:]) for line in answer if line.startswith(b"data: ")]
        return "".join(event["text"] for event in events)
    with Client(served.grpc) as client:
        return client.ask("hello", door=door, max_tokens=200, temperature=0.0).text  # type: ignore[arg-type]


class TurnedAway(Exception):
    """Refused for want of connections, or closed, before an answer began."""


@contextmanager
def answered_meanwhile(served: ServeProcess) -> Iterator[None]:
    """One well-behaved caller on each door, again and again: every one of its answers is whole and the same.

    Over HTTP it may have to come again: while there are more connections than are allowed, none knows that it is a good
    one before its request is whole. An answer that has begun is never cut.
    """
    expected = ask(served, "chat")
    assert len(expected) > 100
    over = threading.Event()
    heard: dict[str, list[str]] = {door: [] for door in DOORS}

    def go_on(door: str) -> None:
        while not over.is_set() or len(heard[door]) < 2:
            try:
                heard[door].append(ask(served, door))
            except TurnedAway:
                time.sleep(0.1)
            except Exception as error:
                heard[door].append(f"{type(error).__name__}: {error}")
                return

    callers = [threading.Thread(target=go_on, args=[door]) for door in DOORS]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        over.set()
        for caller in callers:
            caller.join()
    others = {door: sorted(set(answers) - {expected}) for door, answers in heard.items()}
    assert others == {door: [] for door in DOORS}
    assert all(heard.values())
