"""However serve ends, nothing of it is left; and when the server dies, serve says so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from hermes_deploy.client import Client
from hermes_deploy.errors import ServeError, UsageError
from hermes_deploy.protocol.tensors import ENGINE
from hermes_deploy.repository.engine_config import read_engine_config
from hermes_deploy.serving import Server
from tests.serving.artifact import seal
from tests.serving.processes import all_gone, eventually

SERVE = """
import json, sys
from pathlib import Path
from hermes_deploy.errors import HermesDeployError
from hermes_deploy.serving import Server, serve

def ready(service):
    print(json.dumps({"grpc": service.endpoints.grpc}), flush=True)

ports = dict.fromkeys(["grpc_port", "http_port", "metrics_port", "health_port", "health_grpc_port"], 0)
try:
    serve(Server(Path(sys.argv[1]), **ports, restarts=0, drain_timeout=1), ready)
except HermesDeployError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@dataclass
class Serving:
    """A serve process that said it is ready, everything that it started, and its temporary folder."""

    process: subprocess.Popen[str]
    started: list[psutil.Process]
    grpc: str
    temporary: Path

    def assert_nothing_left(self) -> None:
        assert all_gone(self.started)
        assert eventually(lambda: not list(self.temporary.iterdir())), list(self.temporary.iterdir())
        assert not list(Path("/dev/shm").glob(f"hermes-{self.process.pid}-*"))
        host, _, port = self.grpc.rpartition(":")
        with socket.socket() as probe:
            assert probe.connect_ex((host, int(port))) != 0


@pytest.fixture
def serving(artifact: Path, tmp_path: Path) -> Iterator[Serving]:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(artifact)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        started = psutil.Process(process.pid).children(recursive=True)
        # guard, tritonserver, three models
        assert len(started) == 5
        yield Serving(process, started, json.loads(line)["grpc"], temporary)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly_even_with_an_answer_on_its_way(serving: Serving, number: signal.Signals) -> None:
    with Client(serving.grpc) as client, client.stream("hello", max_tokens=8000, temperature=0.0) as stream:
        next(stream)
        serving.process.send_signal(number)
        assert serving.process.wait(30) == 0
    serving.assert_nothing_left()


def test_killing_it_leaves_nothing(serving: Serving) -> None:
    serving.process.kill()
    serving.assert_nothing_left()


def test_a_model_process_that_dies_ends_it_with_the_reason(serving: Serving) -> None:
    stubs = [p for p in serving.started if "triton_python_backend_stub" in p.name() or "stub" in p.cmdline()[0]]
    assert len(stubs) == 3
    stubs[0].kill()
    _, message = serving.process.communicate(timeout=30)
    assert serving.process.returncode == ServeError.exit_code
    assert "a model process died" in message
    serving.assert_nothing_left()


def test_a_killed_guard_takes_the_server_with_it(serving: Serving) -> None:
    guard = next(p for p in serving.started if p.ppid() == serving.process.pid)
    guard.kill()
    assert serving.process.wait(30) == ServeError.exit_code
    serving.assert_nothing_left()


def test_an_engine_that_does_not_load_is_reported_with_its_reason(tmp_path: Path, artifact: Path) -> None:
    broken = Path(shutil.copytree(artifact, tmp_path / "broken"))
    graph = broken / "hermes_engine/1/cpu/model.onnx"
    graph.write_bytes(b"not a graph")
    seal(broken, read_engine_config(broken / ENGINE / "1"))
    server = Server(broken, grpc_port=0, http_port=0, metrics_port=0)
    with pytest.raises(ServeError, match=r"(?s)ended while it was loading.*model\.onnx"):
        server.start()


def test_a_context_that_no_question_fits_into_is_refused_in_one_sentence(artifact: Path) -> None:
    with pytest.raises(UsageError, match=r"--max-context is too low .* context of this server is 16 tokens") as refused:
        Server(artifact, grpc_port=0, http_port=0, metrics_port=0, max_context=16).start()
    assert "\n" not in str(refused.value)


def test_what_serving_imports_is_neither_torch_nor_transformers_nor_onnx() -> None:
    code = """
import sys
import hermes_deploy.serving.server, hermes_deploy.serving.engine_model, hermes_deploy.serving.preprocess
import hermes_deploy.serving.postprocess, hermes_deploy.runtime.sessions.ort_cpu
print(sorted({"torch", "transformers", "onnx", "onnx_ir", "tritonclient", "pytriton"} & set(sys.modules)))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
