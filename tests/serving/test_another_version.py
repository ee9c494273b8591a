"""An artifact that another version of hermes-deploy built is refused before it starts, with what to run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hermes_deploy.client import Client, ClientError
from hermes_deploy.errors import ArtifactError
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE, LEASE
from hermes_deploy.repository.engine_config import read_engine_config
from hermes_deploy.repository.triton_config import CONFIG, model_configs, render
from hermes_deploy.serving import Server, preflight
from hermes_deploy.serving.preflight import check
from tests.cli.test_command import run
from tests.serving.artifact import seal


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "artifact"))


@pytest.fixture
def older(copy: Path) -> Path:
    """As built before there were leases."""
    config = read_engine_config(copy / ENGINE / "1")
    names = {tensor.name for tensor in LEASE}
    for model, message in model_configs(config).items():
        kept = [each for each in message.input if each.name not in names]
        del message.input[:]
        message.input.extend(kept)
        for step in message.ensemble_scheduling.step:
            for name in names:
                step.input_map.pop(name, None)
        (copy / model / CONFIG).write_text(render(message))
    seal(copy, config)
    return copy


def test_without_the_comparison_it_is_ready_and_fails_at_its_callers(
    older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "refuse_another_version", lambda *_: None)
    with (
        Server(older, grpc_port=0, http_port=0, metrics_port=0) as server,
        Client(server.endpoints.grpc) as client,
        pytest.raises(ClientError, match=r"unexpected inference input '.*' for model 'hermes'"),
    ):
        client.ask("hello", max_tokens=3, door="ensemble")


def test_it_is_refused_with_what_differs_and_what_to_run(older: Path) -> None:
    with pytest.raises(ArtifactError) as refused:
        Server(older, grpc_port=0, http_port=0, metrics_port=0).start()
    told = str(refused.value)
    assert f"{older} is intact, but was built by another version" in told
    assert f"{ENGINE}/{CONFIG}: input lease_ms is missing" in told
    assert f"--target cpu --max-context 8192 --max-slots 4 --output {older}-new" in told


def test_validate_says_so_too(older: Path) -> None:
    plain = run("validate", str(older))
    assert plain.returncode == ArtifactError.exit_code
    assert "was built by another version" in plain.stderr
    told = run("validate", str(older), "--json")
    assert told.returncode == ArtifactError.exit_code
    found = json.loads(told.stdout)
    assert f"{ENSEMBLE}/{CONFIG}: input lease_ms is missing" in found["another_version"]
    assert (found["valid"], found["problems"]) == (False, [])


def test_a_newer_one_is_refused_as_well(copy: Path) -> None:
    config = read_engine_config(copy / ENGINE / "1")
    message = model_configs(config)[ENGINE]
    message.input.add(name="of_tomorrow", data_type=message.input[0].data_type, dims=[1])
    (copy / ENGINE / CONFIG).write_text(render(message))
    seal(copy, config)
    with pytest.raises(ArtifactError, match="input of_tomorrow is unknown to this version"):
        check(copy)


def test_a_model_that_does_not_call_what_this_version_calls_is_refused(copy: Path) -> None:
    source = copy / ENGINE / "1/model.py"
    source.write_text(source.read_text().replace("        self.model.close()", "        pass"))
    seal(copy, read_engine_config(copy / ENGINE / "1"))
    with pytest.raises(ArtifactError, match=r"hermes_engine/1/model.py: lacks the line: self.model.close\(\)"):
        check(copy)


def test_one_of_this_version_is_served_though_its_text_is_laid_out_in_another_way(copy: Path) -> None:
    config = copy / ENGINE / CONFIG
    config.write_text("# a remark\n" + config.read_text().replace("\n  ", "\n      "))
    seal(copy, read_engine_config(copy / ENGINE / "1"))
    assert check(copy).target == "cpu"
