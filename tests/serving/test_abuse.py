"""Abuse of every port of the real server: what it does to Triton where nobody stands before it, that a doorman and the
bounds of our models hold, that well-behaved callers notice nothing, and that nothing stays."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from hermes_deploy.client import Client, ClientError
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE
from tests.serving import abuse
from tests.serving.abuse import Cost, address, answered_meanwhile, cost, held_open, past_the_doorman, say
from tests.serving.processes import eventually
from tests.serving.raw_requests import failure, text
from tests.serving.serve_process import ServeProcess, serving

PORTS = ("grpc", "http", "metrics", "health", "health_grpc")
CONNECTIONS = 1000
PROMPT = json.dumps([{"role": "user", "content": "a" * 100_000_000}]).encode()


@pytest.fixture(scope="module")
def served(artifact: Path) -> Iterator[ServeProcess]:
    with serving(artifact, restarts=50, restart_backoff=0.1, restart_window=1) as running:
        yield running


@pytest.fixture
def nothing_stays(served: ServeProcess) -> Iterator[None]:
    """The same processes afterwards, with as many files and threads and about as much memory."""
    for door in abuse.DOORS:
        abuse.ask(served, door)
    before, restarts = cost(served), served.restarts()
    yield
    assert served.restarts() == restarts
    assert served.ready()

    def is_back() -> bool:
        now = cost(served)
        return now.files <= before.files + 10 and now.threads <= before.threads + 12 and now.memory < before.memory + 60

    assert eventually(is_back), (before, cost(served))


@pytest.mark.parametrize("request_bytes", [abuse.deep_json(), abuse.many_chunks()], ids=["deep", "chunks"])
def test_what_ends_triton_and_every_stream_is_refused_by_the_doorman(
    served: ServeProcess, request_bytes: bytes
) -> None:
    restarts = served.restarts()
    with Client(served.grpc) as client, client.stream("hello", max_tokens=8000, temperature=0.0) as other:
        next(other)
        assert say(past_the_doorman(served), request_bytes) == b""
        with pytest.raises(ClientError):
            for _ in other:
                pass
    assert eventually(lambda: served.restarts() > restarts and served.ready()), "Triton survives it by itself"

    restarts = served.restarts()
    with answered_meanwhile(served):
        assert say(address(served.said["http"]), request_bytes).split()[1] in (b"400", b"413")
    assert served.restarts() == restarts


def files_of_triton(served: ServeProcess) -> int:
    return served.find("tritonserver").num_fds()


@pytest.mark.usefixtures("nothing_stays")
def test_requests_that_are_half_sent_take_nobodys_place(served: ServeProcess) -> None:
    before = files_of_triton(served)
    with held_open(past_the_doorman(served), 600, abuse.HALF_BODY):
        time.sleep(1)
        assert files_of_triton(served) >= before + 600, "Triton lets go of them by itself"
    assert eventually(lambda: files_of_triton(served) < before + 10)
    with (
        answered_meanwhile(served),
        held_open(address(served.said["http"]), 600, abuse.HALF_BODY),
        held_open(address(served.said["metrics"]), 600, abuse.HALF_HEAD),
    ):
        assert eventually(lambda: files_of_triton(served) < before + 20)
        own = psutil.Process(served.process.pid)
        assert eventually(lambda: own.num_fds() < 2 * 512 + 100), own.num_fds()


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.usefixtures("nothing_stays")
def test_a_thousand_connections_are_opened_and_dropped(served: ServeProcess, port: str) -> None:
    with answered_meanwhile(served), held_open(address(served.said[port]), CONNECTIONS):
        assert served.ready()


def test_without_more_open_files_a_thousand_connections_shut_everybody_out(served: ServeProcess) -> None:
    server = served.find("tritonserver")
    allowed = server.rlimit(psutil.RLIMIT_NOFILE)
    assert allowed[0] > 4096 or allowed[0] == allowed[1], "serve asks for more"
    server.rlimit(psutil.RLIMIT_NOFILE, (1024, allowed[1]))  # as shells and services give
    try:
        with held_open(address(served.grpc), CONNECTIONS), pytest.raises(ClientError), Client(served.grpc) as client:
            client.ask("hello", max_tokens=1, timeout=2)
    finally:
        server.rlimit(psutil.RLIMIT_NOFILE, allowed)
    assert eventually(served.ready)


@pytest.mark.usefixtures("nothing_stays")
def test_random_bytes_are_harmless_on_every_port(served: ServeProcess) -> None:
    with answered_meanwhile(served):
        for port in PORTS:
            abuse.say_nonsense(address(served.said[port]))


@pytest.mark.usefixtures("nothing_stays")
def test_a_prompt_of_100_mb_over_http_is_refused_before_triton_sees_it(served: ServeProcess) -> None:
    with answered_meanwhile(served):
        answer = say(address(served.said["http"]), abuse.large_prompt())
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"bytes or more; at most" in answer


def test_past_the_doorman_a_prompt_of_100_mb_stays_in_memory(served: ServeProcess) -> None:
    before = cost(served).memory
    assert b"at most" in say(past_the_doorman(served), abuse.large_prompt())
    assert cost(served).memory > before + 100


@pytest.mark.parametrize("model", [ENGINE, ENSEMBLE])
def test_a_prompt_of_100_mb_over_grpc_is_refused_and_let_go(served: ServeProcess, model: str) -> None:
    with triton.InferenceServerClient(served.grpc) as raw:
        costs: list[Cost] = []
        with answered_meanwhile(served):
            for _ in range(4):
                assert "at most 8388608 are taken" in failure(raw, model, messages=text(PROMPT))[1]
                costs.append(cost(served))
        # the first leaves Triton's buffers as large as they had to be, and no later one makes them larger
        assert costs[-1].memory < costs[0].memory + 150, costs
        code, told = failure(raw, model, messages=text(b"[" * 5_000_000))
        assert (code, "hold at most" in told) == ("OUT_OF_RANGE", True)
        if model == ENGINE:
            ids = np.zeros(12_000_000, np.int64)
            assert failure(raw, model, input_ids=ids)[0] == "OUT_OF_RANGE"
    assert served.ready()
