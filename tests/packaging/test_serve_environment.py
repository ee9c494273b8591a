"""`hermes-deploy[serve]` serves an artifact without torch, transformers and onnx."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.packaging.environments import make_environment
from tests.serving.artifact import make_artifact

pytestmark = [pytest.mark.xdist_group("packaging"), pytest.mark.slow]

NOT_NEEDED = {"torch", "transformers", "onnx", "onnx-ir", "onnxscript", "optimum", "gguf", "safetensors"}


def test_a_clean_environment_serves_and_answers_on_both_doors(wheel: Path, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    environment = make_environment(tmp_path / "venv", wheel, "serve")
    assert environment.packages() & NOT_NEEDED == set()
    assert environment.run("hermes-deploy", "validate", str(artifact)).returncode == 0
    serve = [environment.bin / "hermes-deploy", "serve", artifact, "--json"]
    names = ("grpc", "http", "metrics", "health", "health-grpc")
    ports = [part for name in names for part in (f"--{name}-port", "0")]
    with subprocess.Popen(
        [*serve, *ports], stdout=subprocess.PIPE, env=environment.variables, cwd=tmp_path, text=True
    ) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            assert ready["ready"]
            answers = []
            for door in ("chat", "ensemble"):
                options = ["--max-tokens", "8", "--temperature", "0", "--door", door, "--json", "--url", ready["grpc"]]
                result = environment.run("hermes-deploy", "ask", "hello", *options)
                assert result.returncode == 0, result.stderr
                answers.append(json.loads(result.stdout))
            assert answers[0]["text"] == answers[1]["text"]
            assert answers[0]["usage"]["completion_tokens"] == 8
        finally:
            server.send_signal(signal.SIGINT)
            status = server.wait(60)
    assert status in (0, 130)
