"""The container's steps on the bare machine: what scripts/container-setup makes serves with a Triton that is there.

No container engine is at hand. The Dockerfile is read; the script that does its work is run, beside the real Triton of
the tests put where an image has its own.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from hermes_deploy.cli.serve import serve
from hermes_deploy.serving.launch import find_triton
from tests.packaging.environments import ROOT, CleanEnvironment
from tests.serving.artifact import make_artifact

DOCKERFILE = (ROOT / "Dockerfile").read_text()
SETUP = ROOT / "scripts" / "container-setup"
NOT_NEEDED = {"nvidia-pytriton", "torch", "transformers", "onnx", "onnx-ir", "gguf", "safetensors", "model-signing"}


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.+)$", DOCKERFILE, re.MULTILINE)


def test_the_image_is_nvidias_by_a_digest_that_somebody_has_to_give() -> None:
    image = "nvcr.io/nvidia/tritonserver:${TRITON_TAG}@${TRITON_DIGEST}"
    assert instructions("FROM") == [f"{image} AS install", image]
    assert "TRITON_DIGEST" in instructions("ARG")


def test_all_that_runs_in_the_image_is_the_script_that_is_tested_here() -> None:
    (run,) = instructions("RUN")
    assert shlex.split(run) == ["scripts/container-setup", "/opt/hermes-deploy", "$EXTRAS"]
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["/opt/hermes-deploy/bin/hermes-deploy"]
    assert instructions("COPY")[-1] == "--from=install /opt/hermes-deploy /opt/hermes-deploy"


def test_the_process_is_not_root() -> None:
    assert instructions("USER") == ["1000:1000"]


def test_what_is_copied_is_what_the_build_may_see() -> None:
    copied = {source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]}
    seen = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == seen
    assert all((ROOT / name).exists() for name in copied)
    assert set(re.findall(r"cp -r (.+) ", SETUP.read_text())[0].split()) <= copied


@pytest.mark.parametrize("arguments", [[], ["relative"], ["/a", "b", "c"], ["/tmp"]])
def test_a_wrong_prefix_is_refused_before_anything_is_done(arguments: list[str]) -> None:
    result = subprocess.run([SETUP, *arguments], capture_output=True, text=True)
    assert result.returncode == 2
    assert "PREFIX" in result.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> CleanEnvironment:
    prefix = tmp_path_factory.mktemp("image") / "hermes-deploy"
    subprocess.run([SETUP, prefix, "container"], check=True, cwd="/")
    return CleanEnvironment(prefix)


def tritonserver(folder: Path) -> Path:
    """A folder with the command `tritonserver`, which knows its own backends, as in NVIDIA's image."""
    triton = find_triton(folder)
    if triton.backends is None:
        return triton.binary.parent
    place = folder / "bin"
    place.mkdir()
    (place / "tritonserver").write_text(
        f"#!/bin/sh\nexport LD_LIBRARY_PATH={triton.environment['LD_LIBRARY_PATH']}\n"
        f'exec {triton.binary} --backend-directory={triton.backends} --cache-directory={triton.caches} "$@"\n'
    )
    (place / "tritonserver").chmod(0o755)
    return place


def files_of(folder: Path) -> dict[str, int]:
    """When each file was last changed."""
    return {str(path): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.slow
@pytest.mark.xdist_group("packaging")
def test_what_the_script_installs_serves_with_the_images_triton_and_writes_nothing_beside_it(
    environment: CleanEnvironment, tmp_path: Path
) -> None:
    assert environment.packages() & NOT_NEEDED == set()
    prefix, artifact = environment.bin.parent, make_artifact(tmp_path)
    (tmp_path / "tmp").mkdir()
    image = tritonserver(tmp_path / "image")
    environment.variables |= {
        "PATH": f"{environment.bin}:{image}:{os.defpath}",
        "TMPDIR": str(tmp_path / "tmp"),
        "HOME": "/nonexistent",
    }
    before = files_of(prefix) | files_of(artifact)
    assert environment.run("hermes-deploy", "validate", str(artifact)).returncode == 0
    command = [environment.bin / "hermes-deploy", "serve", artifact, "--json"]
    ports = [f"--{name.replace('_', '-')}=0" for name in inspect.signature(serve).parameters if name.endswith("_port")]
    with subprocess.Popen(
        [*command, *ports], stdout=subprocess.PIPE, env=environment.variables, cwd="/", text=True
    ) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            options = ["--max-tokens", "4", "--temperature", "0", "--json", "--url", ready["grpc"]]
            result = environment.run("hermes-deploy", "ask", "hello", *options)
            assert result.returncode == 0, result.stderr
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    assert json.loads(result.stdout)["usage"]["completion_tokens"] == 4
    assert files_of(prefix) | files_of(artifact) == before
    assert list((tmp_path / "tmp").iterdir()) == []


def test_everybody_may_read_what_is_installed(environment: CleanEnvironment) -> None:
    prefix = environment.bin.parent
    modes = {path: path.stat().st_mode for path in prefix.rglob("*") if not path.is_symlink()}
    assert [path for path, mode in modes.items() if not mode & 0o004 or mode & 0o022] == []
