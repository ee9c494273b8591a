"""After failures before and after the first token, on both doors, nothing is in flight: the loop and Triton agree.

What Triton still holds shows when it is stopped: it counts versions "that have in-flight inferences", and a model with
a request that was never let go stays "live" until the exit timeout.
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from hermes_deploy.client import Client, ClientError
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE
from hermes_deploy.serving import Server
from hermes_deploy.serving.control import ask
from tests.serving.artifact import MAX_CONTEXT, MAX_SLOTS
from tests.serving.processes import eventually
from tests.serving.raw_requests import failure, over_http, send, text

HELLO = json.dumps([{"role": "user", "content": "hello"}])
PENDING = re.compile(r'^nv_inference_pending_request_count\{model="(\w+)".*\} (\S+)$', re.MULTILINE)
IN_FLIGHT = re.compile(r"Found (\d+) model versions that have in-flight")
LIVE = re.compile(r"Found (\d+) live models")


def metrics(server: Server) -> str:
    with urllib.request.urlopen(server.endpoints.metrics, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def pending(server: Server) -> dict[str, float]:
    return {model: float(count) for model, count in PENDING.findall(metrics(server))}


def running(server: Server) -> int:
    engine = ask(server.control, "status")
    return engine.active + engine.waiting


def before_the_first_token(server: Server, model: str) -> None:
    with triton.InferenceServerClient(server.endpoints.grpc) as raw:
        for inputs, code in (
            ({"messages": text(b"[")}, "INVALID_ARGUMENT"),
            ({"messages": text(HELLO.encode()), "top_p": np.array([2], np.float32)}, "INVALID_ARGUMENT"),
            (
                {"messages": text(json.dumps([{"role": "user", "content": "x" * MAX_CONTEXT}]).encode())},
                "OUT_OF_RANGE",
            ),
        ):
            assert failure(raw, model, **inputs)[0] == code


def after_the_first_token(server: Server, model: str) -> None:
    late = {"messages": text(HELLO.encode()), "max_tokens": np.array([MAX_CONTEXT], np.int32)}
    with triton.InferenceServerClient(server.endpoints.grpc) as raw:
        pieces = send(raw, model, **late, timeout_ms=np.array([300], np.int32))
    assert len(pieces) > 1
    assert pieces[-1]["error_code"].tolist() == [b"DEADLINE_EXCEEDED"]


def over_the_queue(server: Server, model: str) -> None:
    body = {"messages": HELLO, "max_tokens": 200}
    with ThreadPoolExecutor(3 * MAX_SLOTS) as pool:
        answers = list(pool.map(lambda _: over_http(server, model, body)[0], range(3 * MAX_SLOTS)))
    assert set(answers) == {200, 400}, answers  # 2.51 has no status of its own for UNAVAILABLE over HTTP


def cancelled(server: Server, model: str) -> None:
    door: Any = "chat" if model == ENGINE else "ensemble"
    with Client(server.endpoints.grpc) as client:
        with client.stream("hello", door=door, max_tokens=MAX_CONTEXT) as stream:
            next(stream)
        with pytest.raises(ClientError):
            client.ask("hello", door=door, max_tokens=MAX_CONTEXT, timeout=0.2)
        with pytest.raises(ClientError):
            client.ask("hello", door=door, temperature=1e6)


FAILURES: tuple[Callable[[Server, str], None], ...] = (
    before_the_first_token,
    after_the_first_token,
    over_the_queue,
    cancelled,
)


def test_nothing_is_in_flight_after_failures_of_every_kind(artifact: Path, tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    with Server(artifact, grpc_port=0, http_port=0, metrics_port=0, queue_limit=2, log=log) as server:
        assert set(pending(server)) >= {ENGINE, ENSEMBLE}
        for fail in FAILURES:
            for model in (ENGINE, ENSEMBLE):
                fail(server, model)
                assert eventually(lambda: running(server) == 0), f"{fail.__name__} on {model}"
                assert eventually(lambda: not any(pending(server).values())), f"{fail.__name__} on {model}"
        # and the last way to fail: ended from outside, as a drain does
        with ThreadPoolExecutor(2) as pool:
            body = {"messages": HELLO, "max_tokens": MAX_CONTEXT}
            asked = [pool.submit(over_http, server, model, body) for model in (ENGINE, ENSEMBLE)]
            assert eventually(lambda: running(server) == 2)
            ask(server.control, "end", "that is enough")
            for one in asked:
                last = one.result(60)[1][-1]
                # in-band; or the answer's status, where the end came before the first token
                assert "UNAVAILABLE" in last.get("error_code", last.get("error")), last
        assert eventually(lambda: running(server) == 0)
        assert eventually(lambda: not any(pending(server).values()))
        time.sleep(1)  # Triton counts a request until the model's thread, which has answered it, lets go of it
    told = log.read_text(errors="replace")
    assert set(IN_FLIGHT.findall(told)) == {"0"}
    assert LIVE.findall(told)[-1] == "0"
    assert "Exit timeout expired" not in told
