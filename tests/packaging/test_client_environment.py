"""`hermes-deploy[client]` is grpc, protobuf and us: no numpy, no tritonclient, no surprise."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.client.fake_triton import FakeTriton
from tests.packaging.environments import ROOT, make_environment

pytestmark = pytest.mark.xdist_group("packaging")

ASK = """
import sys
from hermes_deploy.client import Client, Message
with Client(sys.argv[1]) as client, client.stream([Message("user", "?")], max_tokens=3) as stream:
    print("".join(piece.text for piece in stream))
outside = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(*sorted(name for name in outside if not name.startswith("_")))
"""


def test_a_clean_environment_has_only_grpc_and_protobuf_and_asks(wheel: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "venv", wheel, "client")
    assert environment.packages() == {"hermes-deploy", "grpcio", "protobuf", "typing-extensions"}
    with FakeTriton() as triton:
        result = environment.run("python", "-c", ASK, triton.url)
    assert result.returncode == 0, result.stderr
    text, modules = result.stdout.splitlines()
    assert text == "Paris."
    assert set(modules.split()) <= {"hermes_deploy", "grpc", "google", "typing_extensions", "cython_runtime"}
    command = environment.run("hermes-deploy", "ask", "?")
    assert command.returncode == 1
    assert "pip install 'hermes-deploy[cli]'" in command.stderr


def test_the_lowest_versions_that_are_allowed_work(wheel: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "venv", wheel, "client")
    environment.pip("install", "--quiet", "grpcio==1.60.0", "protobuf==4.25.0")
    environment.pip("check")
    with FakeTriton() as triton:
        result = environment.run("python", "-W", "error", "-c", ASK, triton.url)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Paris.")


def test_the_client_imports_nothing_heavy_where_everything_is_installed() -> None:
    blocker = textwrap.dedent(
        """
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("numpy", "tritonclient", "torch", "typer", "rich", "pydantic", "yaml"):
                    raise AssertionError(f"{name} was imported")
        sys.meta_path.insert(0, Refuse())
        """
    )
    with FakeTriton() as triton:
        subprocess.run([sys.executable, "-c", blocker + ASK, triton.url], check=True, cwd=ROOT)
