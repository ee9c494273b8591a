"""Faults of a running server: Triton's own health stays green, ours is red within 5 seconds, no caller is left
hanging, and the server comes back on the same ports."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hermes_deploy.client import Client, ClientError
from hermes_deploy.client.stream import Stream
from hermes_deploy.errors import ServeError
from hermes_deploy.protocol.tensors import ENGINE, PREPROCESS
from hermes_deploy.repository.engine_config import read_engine_config
from hermes_deploy.serving.probe import generates, says_ready
from tests.serving.artifact import seal
from tests.serving.processes import all_gone, eventually
from tests.serving.serve_process import ServeProcess, serving

SEEN = 5.0
"""Seconds in which a fault must be seen."""

FAULTY_ENGINE = '''
import time
from pathlib import Path
from hermes_deploy.serving import engine_model

FAULT = Path({fault!r})
"""While this file exists, calls of the engine do what it says."""
real = engine_model.open_session


def open_session(*arguments, **named):
    session = real(*arguments, **named)
    decode = session.decode

    def faulty(*arguments):
        while FAULT.exists() and FAULT.read_text() == "hang":
            time.sleep(0.05)
        if FAULT.exists() and FAULT.read_text() == "raise":
            raise OSError("the device is gone")
        return decode(*arguments)

    session.decode = faulty
    return session


engine_model.open_session = open_session
'''
"""Put before the model of an artifact of this file: what runs in production has no switch for faults."""

FAULTY_STEP = """
import time
from pathlib import Path
from hermes_deploy.serving import preprocess

FAULT = Path({fault!r})
real = preprocess.Preprocess.execute


def execute(self, requests):
    while FAULT.exists() and FAULT.read_text() == "wedge":
        time.sleep(0.05)
    return real(self, requests)


preprocess.Preprocess.execute = execute
"""


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fault") / "fault"


@pytest.fixture(scope="module")
def served(artifact: Path, fault: Path) -> Iterator[ServeProcess]:
    faulty = Path(shutil.copytree(artifact, fault.parent / "artifact"))
    first = "import annotations\n"
    for model, code in ((ENGINE, FAULTY_ENGINE), (PREPROCESS, FAULTY_STEP)):
        source = faulty / model / "1/model.py"
        source.write_text(source.read_text().replace(first, first + code.format(fault=str(fault)), 1))
    seal(faulty, read_engine_config(faulty / ENGINE / "1"))
    limits = {"restarts": 50, "restart_backoff": 0.1, "restart_window": 1, "stall_after": 1, "engine_timeout": 3}
    with serving(faulty, **limits) as running:
        yield running


@pytest.fixture
def stream(served: ServeProcess) -> Iterator[Stream]:
    """An answer on its way, that would go on for long."""
    with Client(served.grpc) as client, client.stream("hello", max_tokens=8000, temperature=0.0) as answer:
        next(answer)
        yield answer


def triton_says_ready(served: ServeProcess) -> bool:
    return says_ready(*http_address(served))


def http_address(served: ServeProcess) -> tuple[str, int]:
    host, _, port = served.said["http"].removeprefix("http://").partition(":")
    return host, int(port)


def assert_seen(served: ServeProcess, since: float) -> None:
    while served.ready():
        assert time.monotonic() - since < SEEN, "the fault is not seen"
        time.sleep(0.02)


def assert_back(served: ServeProcess, restarts: int) -> None:
    """With the same ports, as often restarted as it says, and able to answer."""
    assert eventually(served.ready), served.health()
    assert served.restarts() == restarts + 1
    # over HTTP: gRPC channels to one address share their pauses between attempts to connect
    assert generates(*http_address(served), ENGINE, 20) == ""


def how_it_ends(stream: Stream) -> str:
    try:
        for _ in stream:
            pass
    except ClientError as error:
        return str(error)
    return "whole"


@pytest.mark.parametrize("part", ["chatml_preprocess", "hermes_engine", "chatml_postprocess", "tritonserver"])
def test_a_process_that_is_killed(served: ServeProcess, stream: Stream, part: str) -> None:
    restarts, since = served.restarts(), time.monotonic()
    served.find(part).kill()
    assert_seen(served, since)
    assert how_it_ends(stream) != "whole"
    assert_back(served, restarts)
    assert "server ended" in served.health()[1]["last_failure"]


@pytest.mark.parametrize("part", ["hermes_engine", "tritonserver"])
def test_a_process_that_is_stopped(served: ServeProcess, stream: Stream, part: str) -> None:
    restarts, since = served.restarts(), time.monotonic()
    stopped = served.find(part)
    stopped.send_signal(signal.SIGSTOP)
    if part != "tritonserver":
        assert triton_says_ready(served), "Triton sees it by itself"
    assert_seen(served, since)
    assert how_it_ends(stream) != "whole"
    assert_back(served, restarts)
    assert all_gone([stopped])
    assert "SIGSTOP" in served.health()[1]["last_failure"]


def test_an_engine_that_hangs_is_seen_and_its_callers_are_told(
    served: ServeProcess, stream: Stream, fault: Path
) -> None:
    restarts, since = served.restarts(), time.monotonic()
    fault.write_text("hang")
    try:
        assert_seen(served, since)
        assert "a call of the engine has been going on for" in served.reasons()
        assert served.health("/livez")[0] == 503
        assert triton_says_ready(served), "Triton sees it by itself"
        assert "did not come back within 3 s" in how_it_ends(stream)
        assert eventually(lambda: served.restarts() > restarts)
    finally:
        fault.unlink()
    assert_back(served, restarts)


def test_a_step_of_the_ensemble_that_is_wedged(served: ServeProcess, fault: Path) -> None:
    restarts, since = served.restarts(), time.monotonic()
    fault.write_text("wedge")
    try:
        assert_seen(served, since)
        assert "chatml_preprocess has done nothing for" in served.reasons()
        assert triton_says_ready(served), "Triton sees it by itself"
        assert eventually(lambda: served.restarts() > restarts)
    finally:
        fault.unlink()
    assert_back(served, restarts)


def test_an_engine_that_fails_again_and_again(served: ServeProcess, stream: Stream, fault: Path) -> None:
    restarts = served.restarts()
    fault.write_text("raise")
    try:
        assert "the device is gone" in how_it_ends(stream)
        assert served.ready(), "one failure is the request's own"
        with Client(served.grpc) as client:
            for _ in range(2):
                with pytest.raises(ClientError, match="the device is gone"):
                    client.ask("hello", max_tokens=5)
        assert_seen(served, time.monotonic())
    finally:
        fault.unlink()
    assert_back(served, restarts)
    assert "the device is gone" in served.health()[1]["last_failure"]


def test_one_that_fails_too_often_is_given_up_loudly(artifact: Path) -> None:
    with serving(artifact, restarts=1, restart_backoff=0.1) as served:
        restarted = served.restarts
        served.find("hermes_engine").kill()
        assert eventually(lambda: restarted() == 1 and served.ready())
        started = served.started()
        served.find("hermes_engine").kill()
        status, told = served.end()
    assert status == ServeError.exit_code
    assert "failed 2 times within 600 s; 1 restarts are allowed" in told
    assert "a model process died" in told
    assert all_gone(started)


def test_two_servers_on_one_artifact_do_not_know_of_each_other(artifact: Path) -> None:
    with serving(artifact) as first, serving(artifact) as second:
        first.process.terminate()
        assert first.end()[0] == 0
        assert second.ready()
        with Client(second.grpc) as client:
            assert client.ask("hello", max_tokens=3).finish_reason == "length"
        assert psutil.Process(second.process.pid).children()
