"""The doorman before a server that does what the test says. test_abuse.py runs him before the real one."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from hermes_deploy.errors import ServeError
from hermes_deploy.serving.doorman import Bounds, Doorman
from tests.serving.processes import eventually

Answer = Callable[[socket.socket], None]
GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
WAIT = 20.0


class Inside:
    """Listens; each connection is answered by `answer` once a head has come. `ended`: connections that were closed."""

    def __init__(self) -> None:
        self.answer: Answer = ok
        self.ended = threading.Semaphore(0)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):  # closed already
            self._listening.shutdown(socket.SHUT_RDWR)  # whoever accepts would go on
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=[self._listening.accept()[0]], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while b"\r\n\r\n" not in connection.recv(65536):
                pass
            self.answer(connection)
        self.ended.release()


def ok(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")


def two_pieces(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    connection.sendall(b"2\r\nho\r\n0\r\n\r\n")


def until_cut_off(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    while connection.recv(100):
        pass


def without_end(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")


@pytest.fixture
def inside() -> Iterator[Inside]:
    server = Inside()
    yield server
    server.close()


@contextmanager
def posted(inside: int, **bounds: float) -> Iterator[int]:
    """The port of a doorman."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    limits: dict[str, float] = {"body_bytes": 1000, "held_bytes": 100_000, **bounds}
    doorman = Doorman("127.0.0.1", port, inside, Bounds(**limits))  # type: ignore[arg-type]
    try:
        yield port
    finally:
        doorman.close()
        assert not doorman.alive


def call(port: int, data: bytes = GET) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
    connection.sendall(data)
    return connection


def all_of(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    found = b""
    while data := connection.recv(65536):
        found += data
    return found


def status(connection: socket.socket) -> int:
    return int(connection.recv(65536).split()[1])


def test_short_answers_come_over_one_connection(inside: Inside) -> None:
    with posted(inside.port) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
        connection.connect()
        first = connection.sock
        for _ in range(3):
            connection.request("POST", "/x", b"[]")
            assert connection.getresponse().read() == b"hi"
            assert connection.sock is first
        connection.close()


def test_requests_that_come_at_once_are_answered_one_after_the_other(inside: Inside) -> None:
    with (
        posted(inside.port) as port,
        call(port, GET * 2 + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as c,
    ):
        assert all_of(c).count(b"\r\n\r\nhi") == 3


def test_a_stream_comes_as_it_is_and_ends_the_connection(inside: Inside) -> None:
    inside.answer = two_pieces
    with posted(inside.port) as port, call(port) as connection:
        assert all_of(connection).endswith(b"Connection: close\r\n\r\n2\r\nhi\r\n2\r\nho\r\n0\r\n\r\n")


def test_who_waits_to_send_its_body_is_told_to(inside: Inside) -> None:
    with posted(inside.port) as port:
        head = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        with call(port, head) as connection:
            assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"[]")
            assert status(connection) == 200


def test_a_caller_that_hangs_up_is_cut_off_inside(inside: Inside) -> None:
    inside.answer = until_cut_off
    with posted(inside.port) as port:
        with call(port) as connection:
            assert status(connection) == 200
        assert inside.ended.acquire(timeout=WAIT)


def test_an_answer_that_is_cut_inside_is_cut_outside(inside: Inside) -> None:
    inside.answer = lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    with posted(inside.port) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
        connection.request("GET", "/x")
        with pytest.raises(http.client.IncompleteRead):
            connection.getresponse().read()
        connection.close()


@pytest.mark.parametrize("listens", [True, False])
def test_where_nobody_answers_inside_callers_are_told_to_come_back(inside: Inside, listens: bool) -> None:
    inside.answer = socket.socket.close
    if not listens:
        inside.close()
    with posted(inside.port) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
        connection.request("GET", "/x")
        answer = connection.getresponse()
        assert answer.status == (502 if listens else 503)
        assert "Retry after 5 s" in json.load(answer)["error"]
        connection.close()


def test_a_request_that_is_not_whole_in_time_is_refused_and_a_silent_caller_closed(inside: Inside) -> None:
    with posted(inside.port, request_seconds=0.3) as port, call(port, GET[:-2]) as slow, call(port, b"") as silent:
        assert status(slow) == 408
        assert all_of(silent) == b""


def test_whoever_waits_longest_makes_room_and_an_answer_is_never_cut_for_it(inside: Inside) -> None:
    inside.answer = until_cut_off
    with posted(inside.port, connections=3) as port, call(port) as running:
        assert status(running) == 200
        waiting = [call(port, b"") for _ in range(5)]
        assert all(all_of(connection) == b"" for connection in waiting[:3])
        with call(port) as late, call(port) as later:
            assert status(late) == status(later) == 200
            with call(port) as last:
                assert status(last) == 503
            running.setblocking(False)
            with suppress(BlockingIOError):
                assert running.recv(100), "it was cut"
        for connection in waiting:
            connection.close()


def test_the_largest_of_too_many_large_requests_goes(inside: Inside) -> None:
    with posted(inside.port, body_bytes=1 << 20, held_bytes=1 << 20) as port:
        half = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        with call(port, half + b"x" * 600_000) as large, call(port, half + b"x" * 500_000):
            assert status(large) == 503
            with call(port) as other:
                assert status(other) == 200


def test_who_takes_nothing_of_its_answer_is_cut_off(inside: Inside) -> None:
    inside.answer = without_end
    with posted(inside.port, reading_seconds=0.3) as port, call(port):
        assert inside.ended.acquire(timeout=WAIT)


def test_a_refusal_reaches_who_is_still_sending(inside: Inside) -> None:
    with posted(inside.port) as port:
        large = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 9_000_000
        with call(port, large) as connection:
            assert status(connection) == 413


def test_it_leaves_nothing_when_it_goes(inside: Inside) -> None:
    inside.answer = until_cut_off
    before = threading.active_count()
    with posted(inside.port) as port:
        connections = [call(port), call(port, b""), call(port, GET[:5])]
        assert status(connections[0]) == 200
        began = time.monotonic()
    assert time.monotonic() - began < WAIT
    for connection in connections:
        with suppress(ConnectionResetError):
            assert all_of(connection) in (b"", b"2\r\nhi\r\n")
        connection.close()
    assert eventually(lambda: threading.active_count() <= before)


def test_a_port_that_is_taken_is_an_error(inside: Inside) -> None:
    with pytest.raises(ServeError, match=f"cannot listen on 127.0.0.1:{inside.port}"):
        Doorman("127.0.0.1", inside.port, 1, Bounds(1000))
