"""SIGTERM under load: readiness goes off, who comes is refused with a hint, who is there ends in so many words."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from hermes_deploy.client import Client, ClientError
from hermes_deploy.protocol.tensors import ENSEMBLE
from hermes_deploy.serving import Server
from tests.serving.artifact import MAX_SLOTS
from tests.serving.processes import eventually
from tests.serving.raw_requests import over_http
from tests.serving.serve_process import ServeProcess, is_part, serving

DOORS = ("chat", "ensemble")


@dataclass(frozen=True)
class Ended:
    """`reason`: finish_reason of the answer, or the error's words."""

    reason: str
    tokens: int


def read(url: str, door: Any, tokens: int, started: threading.Barrier) -> Ended:
    count = 0
    with Client(url) as client:
        try:
            with client.stream("hello", door=door, max_tokens=tokens, temperature=0.0) as stream:
                for piece in stream:
                    if not count:
                        started.wait(30)
                    count += len(piece.token_ids)
                return Ended(stream.answer.finish_reason, count)
        except ClientError as error:
            return Ended(str(error), count)


@contextmanager
def load(url: str, tokens: int) -> Iterator[list[Future[Ended]]]:
    """An answer in every slot, half of them through each door; entered when all of them have begun."""
    started = threading.Barrier(MAX_SLOTS + 1)
    with ThreadPoolExecutor(MAX_SLOTS) as pool:
        asked = [pool.submit(read, url, DOORS[i % 2], tokens, started) for i in range(MAX_SLOTS)]
        started.wait(30)
        yield asked


def test_without_draining_triton_cuts_ensemble_streams(artifact: Path) -> None:
    with (
        Server(artifact, grpc_port=0, http_port=0, metrics_port=0) as server,
        load(server.endpoints.grpc, tokens=8000) as answers,
    ):
        (triton,) = (p for p in psutil.Process().children(recursive=True) if is_part(p, "tritonserver") and mine(p, server))
        triton.terminate()
        ended = [answer.result(60) for answer in answers]
    assert not all(answer.reason in ("length", "stop") or "in-band" in answer.reason for answer in ended[1::2]), ended


def mine(process: psutil.Process, server: Server) -> bool:
    return f"--grpc-port={server.grpc_port}" in process.cmdline()


def test_whoever_runs_finishes_and_whoever_comes_is_told_when_to_come_back(artifact: Path) -> None:
    with serving(artifact) as served, load(served.grpc, tokens=4000) as answers:
        served.process.terminate()
        assert eventually(lambda: not served.ready())
        assert not any(answer.done() for answer in answers), "too fast to show anything"
        assert_refused(served)
        assert served.health("/livez")[0] == 200
        ended = [answer.result(60) for answer in answers]
        assert served.end()[0] == 0
    assert [(answer.reason, answer.tokens) for answer in ended] == [("length", 4000)] * MAX_SLOTS


def assert_refused(served: ServeProcess) -> None:
    for door in DOORS:
        with Client(served.grpc) as client, pytest.raises(ClientError, match="Retry after 5 s") as refused:
            client.ask("hello", door=door, max_tokens=2)
        assert refused.value.code == "UNAVAILABLE"


def test_whoever_runs_too_long_is_told_so_in_band(artifact: Path) -> None:
    with serving(artifact, drain_timeout=0.5) as served, load(served.grpc, tokens=8000) as answers:
        served.process.terminate()
        ended = [answer.result(60) for answer in answers]
        assert served.end()[0] == 0
    for answer in ended:
        assert "did not end within the 0.5 s" in answer.reason, answer
        assert 0 < answer.tokens < 8000


def test_a_second_signal_cuts_short_and_still_tells(artifact: Path) -> None:
    with serving(artifact, drain_timeout=300) as served, load(served.grpc, tokens=8000) as answers:
        served.process.terminate()
        assert eventually(lambda: not served.ready())
        time.sleep(0.3)
        served.process.terminate()
        ended = [answer.result(60) for answer in answers]
        assert served.end()[0] == 0
    assert all("told twice to stop" in answer.reason for answer in ended), ended
