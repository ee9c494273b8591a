"""Every way to fail is an error that says what was found and what to run, and knows its request."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc
import pytest

from hermes_deploy import client as sdk
from hermes_deploy.client import Client
from hermes_deploy.errors import HermesDeployError
from hermes_deploy.protocol.failures import failure_text
from hermes_deploy.protocol.grpc_service_pb2 import ModelStreamInferResponse
from tests.client.fake_triton import FakeTriton, piece
from tests.client.test_stream import stuck

KINDS = [
    ("INVALID_ARGUMENT", sdk.InvalidRequest),
    ("OUT_OF_RANGE", sdk.ContextTooLong),
    ("NOT_FOUND", sdk.ModelNotFound),
    ("RESOURCE_EXHAUSTED", sdk.Overloaded),
    ("UNAVAILABLE", sdk.Unavailable),
    ("DEADLINE_EXCEEDED", sdk.DeadlineExceeded),
    ("CANCELLED", sdk.Cancelled),
    ("INTERNAL", sdk.ServerFailed),
    ("UNAUTHENTICATED", sdk.NotAllowed),
    ("UNIMPLEMENTED", sdk.ProtocolMismatch),
]


@pytest.mark.parametrize(("code", "kind"), KINDS)
def test_a_status_before_the_first_piece_is_its_class(
    triton: FakeTriton, client: Client, code: str, kind: type[sdk.ClientError]
) -> None:
    def script(_request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        context.abort(getattr(grpc.StatusCode, code), "the reason.")
        yield

    triton.script = script
    with pytest.raises(kind) as caught:
        client.ask("?", request_id="abc-1")
    error = caught.value
    assert isinstance(error, HermesDeployError)
    assert (error.code, error.request_id, error.door, error.model) == (code, "abc-1", "chat", "hermes_engine")
    assert error.url == triton.url
    assert error.details == "the reason."
    assert "abc-1" in str(error)
    assert error.exit_code != 0


@pytest.mark.parametrize(("code", "kind"), KINDS)
def test_the_same_failure_in_band_is_the_same_class_and_keeps_the_text(
    triton: FakeTriton, client: Client, code: str, kind: type[sdk.ClientError]
) -> None:
    triton.script = lambda _r, _c: iter((piece("half an "), piece("ans", "error", error=(code, "why"), final=True)))
    seen = []
    with pytest.raises(kind) as caught, client.stream("?") as stream:
        for got in stream:
            seen.append(got.text)
    assert seen == ["half an ", "ans"]
    assert (caught.value.code, caught.value.partial_text, caught.value.details) == (code, "half an ans", "why")


@pytest.mark.parametrize(
    ("words", "code", "kind"),
    [
        (failure_text("RESOURCE_EXHAUSTED", "8 chats wait"), "RESOURCE_EXHAUSTED", sdk.Overloaded),
        ("in ensemble 'hermes', INVALID_ARGUMENT: top_p is 2", "INVALID_ARGUMENT", sdk.InvalidRequest),
        ("something Triton says", "UNKNOWN", sdk.ServerFailed),
    ],
)
@pytest.mark.parametrize("as_status", [False, True], ids=["stream message", "status"])
def test_tritons_bare_texts_carry_the_code_of_our_models(
    triton: FakeTriton, client: Client, words: str, code: str, kind: type[sdk.ClientError], as_status: bool
) -> None:
    def script(_request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if as_status:
            context.abort(grpc.StatusCode.UNKNOWN, words)
        yield ModelStreamInferResponse(error_message=words)

    triton.script = script
    with pytest.raises(kind) as caught:
        client.ask("?")
    assert caught.value.code == code


def test_the_client_does_not_ask_triton_for_status_codes_of_which_it_dies(triton: FakeTriton, client: Client) -> None:
    client.ask("?")
    assert "triton_grpc_error" not in triton.metadata[0]


def test_an_error_lets_the_server_end_the_stream(triton: FakeTriton, client: Client) -> None:
    ended = threading.Event()

    def script(_request: Any, _context: grpc.ServicerContext) -> Iterator[Any]:
        yield ModelStreamInferResponse(error_message="INVALID_ARGUMENT: no")
        time.sleep(0.1)
        ended.set()

    triton.script = script
    with pytest.raises(sdk.InvalidRequest):
        client.ask("?")
    assert ended.is_set()
    assert not triton.cancelled.is_set()


def test_a_full_server_says_when_to_come_back(triton: FakeTriton, client: Client) -> None:
    def script(_request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        context.set_trailing_metadata((("retry-after-ms", "1500"),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "8 chats are waiting")
        yield

    triton.script = script
    with pytest.raises(sdk.Overloaded, match=r"8 chats are waiting. Ask again in 1\.5 s") as caught:
        client.ask("?")
    assert caught.value.retry_after_s == 1.5


def test_nobody_at_the_address_says_what_to_run() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{taken.getsockname()[1]}"  # bound, never listening
        with Client(url) as client, pytest.raises(sdk.ConnectionFailed, match="hermes-deploy serve DIR") as caught:
            client.ask("?")
        assert caught.value.code == "UNAVAILABLE"
        with Client(url) as client:
            assert client.ready() is False
            with pytest.raises(sdk.ConnectionFailed):
                client.health()


def test_a_name_that_does_not_resolve_is_a_failed_connection() -> None:
    with Client("no-such-host.invalid:8001") as client, pytest.raises(sdk.ConnectionFailed):
        client.ask("?", timeout=20)


def test_an_http_port_is_told_apart() -> None:
    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Client(f"127.0.0.1:{server.server_port}") as client, pytest.raises(sdk.ProtocolMismatch, match="8001"):
            client.ask("?", timeout=20)
    finally:
        server.shutdown()
        server.server_close()


def test_a_grpc_server_of_another_kind_is_told_apart() -> None:
    from concurrent import futures

    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}") as client, pytest.raises(sdk.ProtocolMismatch, match="right port"):
            client.ask("?")
    finally:
        server.stop(None)


def test_a_server_that_goes_away_in_the_middle_is_unavailable_and_the_text_is_kept(
    triton: FakeTriton, client: Client
) -> None:
    triton.script = stuck
    with client.stream("?") as stream:
        assert next(stream).text == "word "
        threading.Thread(target=triton.stop).start()
        with pytest.raises(sdk.ClientError) as caught:
            next(stream)
    assert isinstance(caught.value, sdk.Unavailable | sdk.Cancelled)
    assert caught.value.partial_text == "word "


def test_a_connection_that_is_cut_in_the_middle_is_unavailable(triton: FakeTriton) -> None:
    triton.script = stuck
    with CuttingProxy(triton.port) as proxy, Client(f"127.0.0.1:{proxy.port}") as client, client.stream("?") as stream:
        assert next(stream).text == "word "
        proxy.cut()
        with pytest.raises(sdk.Unavailable) as caught:
            next(stream)
        assert caught.value.partial_text == "word "


def test_a_client_outlives_a_restart_of_its_server(triton: FakeTriton) -> None:
    with CuttingProxy(triton.port) as proxy, Client(f"127.0.0.1:{proxy.port}") as through:
        assert through.ask("?").text == "Paris."
        proxy.cut()
        through.wait_until_ready(timeout=20)
        assert through.ask("?").text == "Paris."


def test_a_slow_server_runs_into_the_timeout_and_is_told_to_stop(triton: FakeTriton, client: Client) -> None:
    triton.script = stuck
    with pytest.raises(sdk.DeadlineExceeded, match=r"timeout of 0\.3 s") as caught:
        client.ask("?", timeout=0.3)
    assert caught.value.partial_text == "word "
    assert triton.cancelled.wait(10)


def test_a_door_that_is_not_served_is_named(triton: FakeTriton, client: Client) -> None:
    def script(_request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        context.abort(grpc.StatusCode.UNAVAILABLE, "Request for unknown model: 'hermes' is not found")
        yield

    triton.script = script
    with pytest.raises(sdk.ModelNotFound, match="'hermes'"):
        client.ask("?", door="ensemble")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (piece("x", "stop", without="text"), "no output text"),
        (piece("x", "stop", more={"text": ("INT32", b"\0\0\0\0")}), "'text' is INT32"),
        (piece(b"\xff\xfe", "stop"), "not UTF-8"),
        (piece("x", "stop", more={"text": ("BYTES", b"\x09\0\0\0ab")}), "cut off"),
        (piece("x", "stop", more={"text": ("BYTES", b"\x09\0")}), "cut off"),
        (piece("x", "stop", more={"text": ("BYTES", b"")}), "0 elements"),
        (piece("x", "stop", more={"prompt_tokens": ("INT32", b"\0")}), "whole number of INT32"),
        (piece("x", "tired"), "'tired'"),
        (piece("x", "stop", request_id="somebody-else"), "somebody-else"),
    ],
)
def test_an_answer_that_is_not_ours_is_a_protocol_mismatch(
    triton: FakeTriton, client: Client, answer: Any, words: str
) -> None:
    triton.script = lambda _r, _c: iter((answer,))
    with pytest.raises(sdk.ProtocolMismatch, match=words):
        client.ask("?")


def test_health_says_what_is_loaded(triton: FakeTriton, client: Client) -> None:
    triton.loaded = ("hermes_engine",)
    health = client.health()
    assert (health.live, health.ready) == (True, True)
    assert health.models == {"hermes_engine": True, "hermes": False}
    assert health.server == "triton 2.51.0"
    assert client.ready("chat")
    assert not client.ready("ensemble")
    with pytest.raises(sdk.DeadlineExceeded, match="not ready within"):
        client.wait_until_ready("ensemble", timeout=0.2)


class CuttingProxy:
    """A TCP relay whose connections can be cut like a pulled cable; new ones are taken again."""

    def __init__(self, to_port: int) -> None:
        self._to = to_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> CuttingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        while self._sockets:
            gone = self._sockets.pop()
            try:
                gone.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # the other end was first
            finally:
                gone.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_relay, args=(source, sink), daemon=True).start()


def _relay(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
