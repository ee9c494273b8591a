"""What inspect, validate and serve say of signatures and of failed gates, as a shell sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hermes_deploy.repository.demo import demo_config
from hermes_deploy.repository.signature import sign_artifact
from tests.cli.test_command import run
from tests.fixtures.keys import write_keys
from tests.serving.artifact import seal

REASON = "a demonstration of failure"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "hermes_engine/1/cpu").mkdir(parents=True)
    for name in ("model.onnx", "model.onnx.data"):
        (folder / "hermes_engine/1/cpu" / name).write_text("weights")
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
    refused = run("serve", str(artifact), "--require-signature", str(keys[1]))
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
    # an address that is none ends serve just before Triton would start
    started = run("serve", str(artifact), "--host", "no such host")
    assert started.returncode != 0
    assert f"was shipped all the same: {REASON}" in started.stderr
