"""What inspect, validate and serve say of signatures and of failed gates, as a shell sees it."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

import pytest

from hermes_deploy.engines.sidecar import EngineSidecar, LayerSummary, PlanEntry, write_sidecar
from hermes_deploy.repository.assemble import write_models
from hermes_deploy.repository.demo import demo_config
from hermes_deploy.repository.engine_config import EngineTarget, write_engine_config
from hermes_deploy.repository.signature import sign_artifact
from tests.cli.test_command import run
from tests.fixtures.keys import write_keys
from tests.serving.artifact import seal

REASON = "a demonstration of failure"
HEALTH = ("--health-port", "0", "--health-grpc-port", "0")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "hermes_engine/1/cpu").mkdir(parents=True)
    for name in ("fused.onnx", "model.onnx", "model.onnx.data"):
        (folder / "hermes_engine/1/cpu" / name).write_text("weights")
    write_models(folder, demo_config())
    write_engine_config(folder / "hermes_engine/1", demo_config())
    seal(folder, demo_config())
    return folder


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "key")


def test_an_unsigned_artifact_is_said_to_be_so(artifact: Path) -> None:
    assert "signature: none" in run("validate", str(artifact)).stdout
    assert json.loads(run("inspect", str(artifact), "--json").stdout)["signed"] is False


def test_a_signature_is_shown_and_said_to_be_unchecked(artifact: Path, keys: tuple[Path, Path]) -> None:
    sign_artifact(artifact, keys[0])
    assert "signature: there, not checked" in run("validate", str(artifact)).stdout
    assert "validate --require-signature KEY checks it" in " ".join(run("inspect", str(artifact)).stdout.split())
    assert json.loads(run("inspect", str(artifact), "--json").stdout)["signed"] is True


def test_validate_checks_the_signature_with_the_key_that_it_is_given(
    artifact: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    sign_artifact(artifact, keys[0])
    right = run("validate", str(artifact), "--require-signature", str(keys[1]), "--json")
    assert right.returncode == 0, right.stderr
    assert json.loads(right.stdout)["signature"] == f"made by the owner of {keys[1]}"
    _, other = write_keys(tmp_path, "other")
    wrong = run("validate", str(artifact), "--require-signature", str(other), "--json")
    assert wrong.returncode == 6
    assert "was made with another key" in json.loads(wrong.stdout)["error"]["message"]


def test_serve_refuses_what_is_not_signed_before_it_starts_anything(artifact: Path, keys: tuple[Path, Path]) -> None:
    refused = run("serve", str(artifact), *HEALTH, "--require-signature", str(keys[1]))
    assert refused.returncode == 6
    assert "is not signed" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_degraded_artifact_says_so_wherever_it_is_looked_at(artifact: Path) -> None:
    seal(artifact, demo_config(), degraded=REASON)
    shown = " ".join(run("inspect", str(artifact)).stdout.split())
    assert shown.startswith("DEGRADED: its gate failed")
    assert REASON in shown
    assert "FAILED" in shown
    assert "mean KL in nats is 0.01, allowed is at most 0.001" in shown
    assert (
        f"DEGRADED: its gate failed and it was shipped all the same: {REASON}" in run("validate", str(artifact)).stdout
    )
    assert json.loads(run("validate", str(artifact), "--json").stdout)["degraded"] == REASON
    # a port that is taken ends serve just before Triton would start
    with socket.create_server(("127.0.0.1", 0)) as taken:
        started = run("serve", str(artifact), *HEALTH, "--grpc-port", str(taken.getsockname()[1]))
    assert started.returncode == 7
    assert f"was shipped all the same: {REASON}" in started.stderr


def engine_artifact(folder: Path, version: str, plan: bytes = b"plan") -> Path:
    """An artifact with what passes for an engine for sm86; the plan is `plan`, the sidecar is that of b"plan"."""
    engine = folder / "hermes_engine/1/tensorrt-sm86"
    engine.mkdir(parents=True)
    (engine / "engine.plan").write_bytes(plan)
    sidecar = EngineSidecar(
        flavour="tensorrt_rtx",
        version=version,
        targets=["sm86"],
        compute_capabilities=["8.6"],
        precision="int4",
        head_precision="int4",
        kept=[],
        inputs=[],
        outputs=[],
        aliases={},
        profiles=[],
        layers=LayerSummary(linears={}, gemms={}, attentions=0, fused_attention={}, kernels=0),
        plan=PlanEntry(sha256=hashlib.sha256(b"plan").hexdigest(), size=4),
    )
    write_sidecar(engine, sidecar)
    files = ("tensorrt-sm86/engine.plan", "tensorrt-sm86/engine.json")
    target = EngineTarget(name="sm86", engine="tensorrt", precision="int4", model=files[0], files=files)
    seal(folder, demo_config().model_copy(update={"targets": (target,)}))
    return folder


def test_an_engine_of_another_tensorrt_is_told(tmp_path: Path) -> None:
    done = run("validate", str(engine_artifact(tmp_path / "artifact", "0.0.1")), "--json")
    assert done.returncode == 6
    reason = json.loads(done.stdout)["targets"]["sm86"]
    assert "built by tensorrt_rtx 0.0.1 and opens with that version only; this machine has" in reason


def test_an_engine_that_is_not_its_sidecars_is_refused(tmp_path: Path) -> None:
    done = run("validate", str(engine_artifact(tmp_path / "artifact", "0.0.1", plan=b"nalp")))
    assert done.returncode == 6
    assert "is not the engine that engine.json was written for" in done.stderr
