"""Files of an artifact that change under a running server: what was loaded is served, or nothing is."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import IO

import pytest

from hermes_deploy.client import Client, ClientError
from hermes_deploy.errors import ArtifactError
from hermes_deploy.protocol.tensors import ENGINE
from hermes_deploy.repository.manifest import FileEntry, hash_stream
from hermes_deploy.serving import Server, loaded_files, preflight
from hermes_deploy.serving.loaded_files import LoadedFiles, hold_loaded
from hermes_deploy.serving.probe import says_ready
from tests.serving.processes import eventually
from tests.serving.serve_process import serving

WEIGHTS = "hermes_engine/1/cpu/model.onnx.data"


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    """An artifact to damage."""
    return Path(shutil.copytree(artifact, tmp_path / "artifact"))


def scramble(path: Path) -> None:
    """Other weights of the same size, written in place: its second half over its first."""
    data = path.read_bytes()
    half = len(data) // 2 // 4 * 4
    with path.open("r+b") as stream:
        stream.write(data[half : 2 * half])


def ask(at: str) -> str:
    with Client(at) as client:
        return client.ask("hello", max_tokens=20, temperature=0.0).text


def test_without_anybody_who_looks_other_weights_answer_and_triton_is_well(copy: Path) -> None:
    with Server(copy, grpc_port=0, http_port=0, metrics_port=0) as server:
        before = ask(server.endpoints.grpc)
        assert ask(server.endpoints.grpc) == before
        scramble(copy / WEIGHTS)
        with Client(server.endpoints.grpc) as client:
            try:
                after = client.ask("hello", max_tokens=20, temperature=0.0).text
            except ClientError as error:
                after = str(error)
        assert after != before
        assert says_ready(server.host, server.http_port)
        server.check()


@pytest.mark.parametrize("how", ["written", "cut"])
def test_weights_that_change_in_place_end_the_service_loudly(copy: Path, how: str) -> None:
    with serving(copy, restart_backoff=0.1) as served:
        if how == "written":
            scramble(copy / WEIGHTS)
        else:
            os.truncate(copy / WEIGHTS, 4096)
        status, told = served.end()
    assert status == ArtifactError.exit_code, told
    assert f"artifact were changed under the running server: {WEIGHTS} " in told
    assert "is not as it was built, so it is not served" in told


def test_an_artifact_that_is_replaced_or_touched_is_served_on_as_it_was_loaded(copy: Path) -> None:
    with serving(copy, restart_backoff=0.1) as served:
        before = ask(served.grpc)
        os.utime(copy / WEIGHTS)
        other = copy.with_name("other")
        shutil.copyfile(copy / WEIGHTS, other)
        scramble(other)
        other.replace(copy / WEIGHTS)
        assert eventually(lambda: f"{WEIGHTS} was replaced" in (served.health()[1]["artifact_changed"] or ""))
        assert eventually(served.ready)
        assert ask(served.grpc) == before
        shutil.rmtree(copy)
        assert ask(served.grpc) == before
        assert eventually(served.ready)
        assert served.restarts() == 0
        served.find(ENGINE).kill()
        status, told = served.end()
    assert f"{WEIGHTS} was replaced" in told
    assert "goes on with what it has loaded" in told
    assert status == ArtifactError.exit_code, told
    assert "is not a hermes-deploy artifact" in told


def test_what_changes_between_being_hashed_and_being_loaded_is_not_served(copy: Path) -> None:
    plan = preflight.check(copy)
    hold_loaded(copy, plan.before, plan.engine_files).close()
    kept = copy.with_name("kept")
    (copy / WEIGHTS).rename(kept)
    shutil.copyfile(kept, copy / WEIGHTS)
    kept.replace(copy / WEIGHTS)  # put back: what is there now is what was hashed, and what was loaded is not
    with pytest.raises(ArtifactError, match=f"changed while it was being verified and loaded.*{WEIGHTS}"):
        hold_loaded(copy, plan.before, plan.engine_files)


def test_bytes_are_read_again_only_where_a_file_was_touched(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = preflight.check(copy)
    read_on = threading.Event()

    def slowly(stream: IO[bytes]) -> FileEntry:
        assert read_on.wait(60)
        return hash_stream(stream)

    monkeypatch.setattr(loaded_files, "hash_stream", slowly)
    files = LoadedFiles(copy, plan.before, plan.engine_files)
    assert files.look().problem is None
    os.utime(copy / WEIGHTS)
    assert "are being compared with the manifest" in (files.look().problem or "")
    read_on.set()
    assert eventually(lambda: files.look().problem is None)
    other = copy.with_name("other")
    shutil.copyfile(copy / WEIGHTS, other)
    held = copy.with_name("held")
    (copy / WEIGHTS).rename(held)
    other.rename(copy / WEIGHTS)
    assert eventually(lambda: f"{WEIGHTS} was replaced" in (files.look().news or ""))
    assert files.look().news is None, "it is told once"
    read_on.clear()
    held.chmod(0o600)
    assert files.look().problem is not None
    read_on.set()
    scramble(held)
    assert eventually(lambda: files.look().fatal)
    assert f"{WEIGHTS} was written to" in (files.look().problem or "")
    files.close()
