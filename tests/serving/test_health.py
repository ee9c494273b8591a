"""What follows from what is seen, and the ports on which it is asked."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from hermes_deploy.errors import ServeError
from hermes_deploy.protocol.health_v1 import (
    NOT_SERVING,
    SERVICE,
    SERVICE_UNKNOWN,
    SERVING,
    HealthCheckRequest,
    HealthCheckResponse,
)
from hermes_deploy.runtime.running_chat import Progress
from hermes_deploy.serving import Server, health_ports
from hermes_deploy.serving.health import HEARTBEAT, Health
from hermes_deploy.serving.health_ports import HealthPorts
from hermes_deploy.serving.watch import Limits, judge
from tests.serving.serve_process import ask_health

WELL = Progress(dead=None, draining=False, active=1, waiting=0, calls=9, in_call=0.1, longest_call=0.2)
LIMITS = Limits(stall_after=4, silence_timeout=15, engine_timeout=120)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def progress(**changed: Any) -> Progress:
    return Progress(**{**WELL.__dict__, **changed})


def test_an_engine_whose_calls_come_back_is_well() -> None:
    assert judge(WELL, None, 0, LIMITS).problem is None


def test_a_call_stalls_when_it_is_long_both_by_the_clock_and_by_what_is_usual() -> None:
    look = judge(progress(in_call=4.5), None, 0, LIMITS)
    assert look.problem == "a call of the engine has been going on for 4 s; the longest before took 0.2 s"
    assert not look.fatal, "how long a call may take is the engine's own to say"
    # a long prompt on a slow machine
    assert judge(progress(in_call=20, longest_call=10), None, 0, LIMITS).problem is None
    assert judge(progress(in_call=31, longest_call=10), None, 0, LIMITS).problem is not None


def test_one_missed_answer_is_not_told_two_are_and_many_are_fatal() -> None:
    assert judge(None, "nobody answers", 1.0, LIMITS).problem is None
    two = judge(None, "nobody answers", 2.0, LIMITS)
    assert (two.problem, two.fatal) == ("nobody answers; no answer for 2 s", False)
    assert judge(WELL, "Triton does not answer", 15.5, LIMITS).fatal


def test_a_step_of_the_ensemble_that_does_not_step_is_told_and_later_fatal() -> None:
    assert judge(WELL, None, 0, LIMITS, ("chatml_preprocess", 3)).problem is None
    stuck = judge(WELL, None, 0, LIMITS, ("chatml_preprocess", 5))
    assert (stuck.problem, stuck.fatal) == ("chatml_preprocess has done nothing for 5 s", False)
    assert judge(WELL, None, 0, LIMITS, ("chatml_postprocess", 121)).fatal


def test_a_dead_engine_is_past_repair_whatever_else_there_is() -> None:
    look = judge(progress(dead="no memory"), "Triton does not answer", 0.5, LIMITS)
    assert (look.problem, look.fatal) == ("the engine died: no memory", True)


def test_ready_and_alive_through_a_life() -> None:
    clock = Clock()
    health = Health(clock)

    def now() -> tuple[bool, bool]:
        verdict = health.verdict()
        assert bool(verdict.reasons) != verdict.ready
        return verdict.ready, verdict.alive

    assert now() == (False, True), "starting: nothing that could progress"
    health.enter("serving")
    assert now() == (True, True)
    health.seen("a call stalls", WELL)
    assert now() == (False, False)
    health.seen(None, WELL)
    assert now() == (True, True)
    health.failed("it died")
    assert now() == (False, False)
    health.restarted()
    health.enter("restarting")
    assert now() == (False, True), "it is being repaired"
    health.enter("serving")
    assert health.document()["last_failure"] == "it died"
    assert health.document()["restarts"] == 1
    health.enter("draining")
    assert now() == (False, True)
    health.enter("stopped")
    assert now() == (False, False)


def test_a_watchman_who_does_not_come_is_seen_too() -> None:
    clock = Clock()
    health = Health(clock)
    health.enter("serving")
    clock.now += HEARTBEAT + 1
    verdict = health.verdict()
    assert (verdict.ready, verdict.alive) == (False, False)
    assert verdict.reasons == ("nobody has looked at the server for 9 s",)


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def ports(health: Health) -> Iterator[HealthPorts]:
    listening = HealthPorts(health, "127.0.0.1", 0, 0)
    yield listening
    listening.close()


def check(port: int, service: str = "") -> int:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        return int(call(HealthCheckRequest(service=service), timeout=10).status)


def test_both_ports_say_the_same(health: Health, ports: HealthPorts) -> None:
    url = f"http://127.0.0.1:{ports.http_port}"
    assert ask_health(f"{url}/livez") == (200, {"ok": True, "reasons": [health.verdict().reasons[0]]})
    assert ask_health(f"{url}/readyz?verbose")[0] == 503
    assert ask_health(f"{url}/healthz")[1]["phase"] == "starting"
    assert [check(ports.grpc_port, name) for name in ("", "ready", "live")] == [NOT_SERVING, NOT_SERVING, SERVING]
    health.enter("serving")
    health.seen(None, WELL)
    assert ask_health(f"{url}/readyz") == (200, {"ok": True, "reasons": []})
    status, document = ask_health(f"{url}/healthz")
    assert (status, document["engine"]["calls"]) == (200, 9)
    assert check(ports.grpc_port) == SERVING
    assert ask_health(f"{url}/")[0] == 404
    with pytest.raises(grpc.RpcError) as unknown:
        check(ports.grpc_port, "other")
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


def test_our_messages_are_those_of_the_protocol(server: Server) -> None:
    """Triton has a health service of its own: the same call is understood there."""
    assert check(server.grpc_port) == SERVING
    assert HealthCheckResponse(status=SERVING).SerializeToString() == b"\x08\x01"
    assert HealthCheckRequest(service="ready").SerializeToString() == b"\x0a\x05ready"


def test_who_watches_hears_of_each_change(health: Health, ports: HealthPorts) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc_port}") as channel:
        watch = channel.unary_stream(
            f"/{SERVICE}/Watch",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        unknown = watch(HealthCheckRequest(service="other"), timeout=20)
        assert next(unknown).status == SERVICE_UNKNOWN
        unknown.cancel()
        seen = watch(HealthCheckRequest(), timeout=20)
        assert next(seen).status == NOT_SERVING
        health.enter("serving")
        assert next(seen).status == SERVING
        health.seen("a call stalls")
        assert next(seen).status == NOT_SERVING
        seen.cancel()


def test_abuse_of_the_http_port_is_survived(ports: HealthPorts) -> None:
    half_sent = []
    for _ in range(200):
        caller = socket.create_connection(("127.0.0.1", ports.http_port))
        half_sent.append(caller)
    half_sent[0].sendall(b"GET /livez HT")
    half_sent[1].sendall(bytes(range(256)) * 16)
    half_sent[2].sendall(b"GET /" + b"x" * 100_000)
    for _ in range(3):
        assert ask_health(f"http://127.0.0.1:{ports.http_port}/livez")[0] == 200
    for caller in half_sent:
        caller.close()


def test_who_sends_a_byte_at_a_time_does_not_stay(ports: HealthPorts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_ports, "_PATIENCE", 0.2)
    with socket.create_connection(("127.0.0.1", ports.http_port)) as caller, pytest.raises(OSError):
        for _ in range(200):
            caller.sendall(b"x")
            time.sleep(0.05)


def test_a_port_that_is_taken_is_said_by_its_flag(ports: HealthPorts) -> None:
    with pytest.raises(ServeError, match=f"health port {ports.http_port} is in use"):
        HealthPorts(Health(), "127.0.0.1", ports.http_port, 0)
