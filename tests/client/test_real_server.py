"""What the scripted Triton of these tests pretends, a real Triton does: the same client on the real thing."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from hermes_deploy.client import (
    Cancelled,
    Client,
    ClientError,
    ContextTooLong,
    DeadlineExceeded,
    Door,
    InvalidRequest,
    Message,
    ModelNotFound,
    ProtocolMismatch,
)
from hermes_deploy.client.errors import CallFacts
from hermes_deploy.client.sampling import Sampling
from hermes_deploy.client.stream import Stream
from hermes_deploy.client.wire import chat_request, is_final
from hermes_deploy.protocol import methods
from hermes_deploy.serving import Server
from tests.serving.artifact import MAX_CONTEXT, MAX_SLOTS
from tests.serving.conftest import artifact, client, server  # noqa: F401  - fixtures

BOTH = pytest.mark.parametrize("door", ["chat", "ensemble"])


@BOTH
def test_pieces_make_the_answer_and_the_ids_are_counted(client: Client, door: Door) -> None:  # noqa: F811
    with client.stream("Bonjour 🙂", door=door, max_tokens=50, temperature=0.0) as stream:
        pieces = list(stream)
        answer = stream.result()
    assert "".join(p.text for p in pieces) == answer.text
    assert sum(len(p.token_ids) for p in pieces) == answer.usage.completion_tokens == 50
    assert [p.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert answer.request_id == stream.request_id


@BOTH
def test_the_stream_ends_with_a_final_flag_and_then_by_itself(client: Client, door: Door) -> None:  # noqa: F811
    method = methods.STREAM_INFER
    call = client._channel.stream_stream(method.path, method.serialize_request, method.parse_response)
    model = {"chat": "hermes_engine", "ensemble": "hermes"}[door]
    request = chat_request(model, "id-1", [Message("user", "hello")], Sampling(max_tokens=3))
    responses = [r.infer_response for r in call(iter((request,)), timeout=60)]
    assert [is_final(r) for r in responses] == [False] * (len(responses) - 1) + [True]
    assert {r.id for r in responses} == {"id-1"}


@BOTH
def test_options_mean_what_they_say(client: Client, door: Door) -> None:  # noqa: F811
    def ask(seed: int) -> str:
        return client.ask(
            [Message("user", "one"), Message("assistant", "two"), Message("user", "three")],
            system="be brief",
            max_tokens=40,
            temperature=1.0,
            top_p=0.95,
            top_k=50,
            seed=seed,
            door=door,
        ).text

    assert ask(1) == ask(1) != ask(2)


@BOTH
def test_a_refused_request_has_the_class_of_its_reason(client: Client, door: Door) -> None:  # noqa: F811
    with pytest.raises(ContextTooLong) as caught:
        client.ask("x" * MAX_CONTEXT, door=door, request_id="too-long")
    assert (caught.value.code, caught.value.request_id, caught.value.door) == ("OUT_OF_RANGE", "too-long", door)
    with pytest.raises(InvalidRequest, match="temperature"):
        client.ask("?", temperature=1e6, door=door)


def test_leaving_a_timeout_and_a_cancel_each_free_their_slot(client: Client) -> None:  # noqa: F811
    for let_go in ("leave", "timeout", "cancel"):
        with ExitStack() as stack:
            streams = [
                stack.enter_context(
                    client.stream(
                        f"{n}",
                        max_tokens=MAX_CONTEXT,
                        temperature=0.0,
                        timeout=0.5 if let_go == "timeout" and n == 0 else 60,
                    )
                )
                for n in range(MAX_SLOTS)
            ]
            for stream in streams:
                next(stream)
            if let_go == "leave":
                streams[0].close()
            elif let_go == "cancel":
                threading.Timer(0.1, streams[0].cancel).start()
                with pytest.raises(Cancelled):
                    streams[0].result()
            else:
                with pytest.raises(DeadlineExceeded):
                    streams[0].result()
            # it was this one that made room: the others are still at it
            assert client.ask("next", max_tokens=2, temperature=0.0, timeout=60).usage.completion_tokens == 2
            assert all(next(stream).finish_reason is None for stream in streams[1:])


def test_health_and_readiness_are_the_servers_own_word(client: Client) -> None:  # noqa: F811
    health = client.health()
    assert (health.live, health.ready) == (True, True)
    assert health.models == {"hermes_engine": True, "hermes": True}
    assert health.server.startswith("triton 2.")
    assert client.ready("chat") and client.ready("ensemble")
    client.wait_until_ready(timeout=1)


def test_a_model_that_is_not_served_is_told_apart(client: Client) -> None:  # noqa: F811
    method = methods.STREAM_INFER
    call = client._channel.stream_stream(method.path, method.serialize_request, method.parse_response)
    facts = CallFacts(client.url, "chat", "no_such_model", "id-2")
    request = chat_request(facts.model, facts.request_id, [Message("user", "?")], Sampling())
    with (
        pytest.raises(ModelNotFound, match="no_such_model"),
        Stream(lambda: call(iter((request,)), timeout=60), facts, 60) as stream,
    ):
        stream.result()


def test_the_http_and_metrics_ports_are_told_apart(server: Server) -> None:  # noqa: F811
    for address in (server.endpoints.http, server.endpoints.metrics):
        port = address.removesuffix("/metrics").rsplit(":", 1)[1]
        with Client(f"127.0.0.1:{port}") as wrong, pytest.raises(ProtocolMismatch, match="does not speak gRPC"):
            wrong.ask("?", timeout=30)


@BOTH
def test_a_killed_server_is_an_error_with_the_text_so_far(artifact: Path, door: Door) -> None:  # noqa: F811
    with (
        Server(artifact, grpc_port=0, http_port=0, metrics_port=0) as doomed,
        Client(doomed.endpoints.grpc) as client,  # noqa: F811
    ):
        process = next(p for p in psutil.Process().children(recursive=True) if names_port(p, doomed.grpc_port))
        with client.stream("hello", max_tokens=MAX_CONTEXT, temperature=0.0, door=door, timeout=60) as stream:
            next(stream)
            process.kill()
            with pytest.raises(ClientError) as caught:
                stream.result()
    assert caught.value.partial_text
    assert caught.value.code in ("UNAVAILABLE", "CANCELLED", "DATA_LOSS")


def names_port(process: psutil.Process, port: int) -> bool:
    return "tritonserver" in process.name() and any(str(port) in part for part in process.cmdline())
