"""What is not as it was built, or cannot run here, is refused before a process is started."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from hermes_deploy import machine
from hermes_deploy.errors import ArtifactError, ServeError, UsageError
from hermes_deploy.protocol.tensors import ENGINE
from hermes_deploy.repository.engine_config import read_engine_config
from hermes_deploy.repository.signature import sign_artifact
from hermes_deploy.serving import Server
from hermes_deploy.serving.launch import command, find_triton, write_models
from hermes_deploy.serving.preflight import check
from hermes_deploy.serving.settings import Settings
from tests.fixtures.keys import write_keys
from tests.serving.artifact import MAX_CONTEXT, MAX_SLOTS, seal


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_keys(tmp_path_factory.mktemp("keys"), "key")


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    """An artifact to damage."""
    return Path(shutil.copytree(artifact, tmp_path / "artifact"))


def refused(artifact: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        Server(artifact, grpc_port=0, http_port=0, metrics_port=0).start()
    return str(error.value)


def test_an_intact_artifact_is_planned_as_it_was_built(artifact: Path) -> None:
    plan = check(artifact)
    assert (plan.target, plan.max_context, plan.max_slots) == ("cpu", MAX_CONTEXT, MAX_SLOTS)


def test_one_changed_byte_is_refused_and_the_file_is_named(copy: Path) -> None:
    weights = copy / "hermes_engine/1/cpu/model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    assert "hermes_engine/1/cpu/model.onnx.data: sha256 differs from the manifest" in refused(copy)


def test_an_added_file_is_refused(copy: Path) -> None:
    (copy / "hermes_engine/1/sitecustomize.py").write_text("import os")
    assert "hermes_engine/1/sitecustomize.py: not named in the manifest" in refused(copy)


def test_a_removed_file_is_refused(copy: Path) -> None:
    (copy / "chatml_preprocess/1/tokenizer.json").unlink()
    assert "chatml_preprocess/1/tokenizer.json: missing" in refused(copy)


@pytest.mark.parametrize("name", ["two words", "été", "$HOME"])
def test_a_temporary_folder_that_triton_cannot_start_from_is_refused(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with pytest.raises(ServeError, match="Set TMPDIR"):
        Server(artifact, grpc_port=0, http_port=0, metrics_port=0).start()
    assert list((tmp_path / name).iterdir()) == []


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    assert "is not a hermes-deploy artifact" in refused(tmp_path)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_context": MAX_CONTEXT + 1}, f"was built for {MAX_CONTEXT}, which serving may lower"),
        ({"max_slots": MAX_SLOTS + 1}, f"build again with --max-slots {MAX_SLOTS + 1}"),
        ({"max_slots": 0}, f"allowed is 1 to {MAX_SLOTS}"),
        ({"max_context": 3}, f"allowed is 16 to {MAX_CONTEXT}"),
    ],
)
def test_limits_may_be_lowered_and_never_raised(artifact: Path, limits: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(artifact, **limits)


def test_lowered_limits_stand_in_the_config_that_triton_reads_and_the_artifact_keeps_its_own(
    artifact: Path, tmp_path: Path
) -> None:
    write_models(check(artifact, max_context=64, max_slots=2), tmp_path / "models", Settings(queue_limit=7))
    lowered = (tmp_path / "models" / ENGINE / "config.pbtxt").read_text()
    assert 'string_value: "64"' in lowered
    assert 'string_value: "2"' in lowered
    assert f'string_value: "{MAX_CONTEXT}"' in (artifact / ENGINE / "config.pbtxt").read_text()


def test_a_target_that_this_machine_cannot_run_is_refused_with_what_is_missing(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_engine_config(copy / ENGINE / "1")
    target = config.targets[0].model_copy(update={"name": "sm89"})
    seal(copy, config.model_copy(update={"targets": (target,)}))
    monkeypatch.setattr(machine, "gpus", lambda: ())
    with pytest.raises(ServeError, match=r"sm89: no NVIDIA GPU was found.*install NVIDIA's driver"):
        check(copy)


def test_a_degraded_artifact_says_so_and_why_at_every_start(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seal(copy, read_engine_config(copy / ENGINE / "1"), degraded="a demonstration of failure")
    server = Server(copy, grpc_port=0, http_port=0, metrics_port=0)
    monkeypatch.setattr(server, "_start_once", lambda _: None)  # Triton itself would add nothing here
    for _ in range(2):
        caplog.clear()
        server.start()
        assert "DEGRADED" in caplog.text
        assert "a demonstration of failure" in caplog.text
        assert "cpu: mean KL in nats is 0.01, allowed is at most 0.001" in caplog.text
        assert {record.levelname for record in caplog.records} == {"WARNING"}


def test_a_signature_is_checked_before_anything_starts_where_it_is_required(
    copy: Path, keys: tuple[Path, Path]
) -> None:
    with pytest.raises(ArtifactError, match="is not signed"):
        Server(copy, require_signature=keys[1], grpc_port=0, http_port=0, metrics_port=0).start()
    sign_artifact(copy, keys[0])
    assert check(copy, require_signature=keys[1]).warnings == ()
    (copy / "MODEL_LICENSE").write_text("changed")
    with pytest.raises(ArtifactError, match="MODEL_LICENSE: "):
        check(copy, require_signature=keys[1])
    seal(copy, read_engine_config(copy / ENGINE / "1"))
    with pytest.raises(ArtifactError, match="is not the signature of this artifact"):
        check(copy, require_signature=keys[1])
    with pytest.raises(UsageError, match="is a private key"):
        check(copy, require_signature=keys[0])


def test_a_signature_that_nobody_asked_for_is_said_to_be_unchecked(copy: Path, keys: tuple[Path, Path]) -> None:
    assert check(copy).warnings == ()
    sign_artifact(copy, keys[0])
    (warning,) = check(copy).warnings
    assert "model.sig is there and was not checked; --require-signature KEY checks it" in warning


def test_the_containers_own_server_is_preferred_and_keeps_its_own_backends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "bin/tritonserver"
    own.parent.mkdir()
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(own.parent))
    triton = find_triton(tmp_path / "run")
    assert triton.binary == own
    flags = command(triton, tmp_path, "127.0.0.1", {"grpc": 1, "http": 2, "metrics": 3}, "x", "secret")
    assert not any(flag.startswith("--backend-directory") for flag in flags)
    assert not (tmp_path / "run").exists()
