"""The verb `bench` through its command line, in process."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from hermes_deploy.benchmarking import options as options_module
from hermes_deploy.cli.app import app
from hermes_deploy.errors import UsageError
from tests.benchmarking.conftest import TINY


@pytest.fixture
def tiny_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options_module, "QUICK", TINY)


ARGUMENTS = ["--quick", "--rounds", "1", "--doors", "in-process", "--streams", "1,2,16"]


@pytest.mark.usefixtures("tiny_quick")
def test_a_table_json_and_a_plot(artifact: Path, tmp_path: Path) -> None:
    numbers, picture = tmp_path / "numbers.json", tmp_path / "picture.svg"
    result = CliRunner().invoke(
        app, ["bench", str(artifact), *ARGUMENTS, "--json", str(numbers), "--plot", str(picture)]
    )
    assert result.exit_code == 0, result.output
    for said in ("prefill", "decode", "in-process", "left out:", "16 streams: the artifact has 4 slots"):
        assert said in result.stdout
    assert "round 1 of 1: second turn, in-process" in result.stderr
    assert json.loads(numbers.read_bytes())["rows"]
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


@pytest.mark.usefixtures("tiny_quick")
def test_json_on_standard_output_is_all_that_is_there(artifact: Path) -> None:
    result = CliRunner().invoke(app, ["bench", str(artifact), *ARGUMENTS, "--json", "-"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["left_out"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--streams", "1,two"], "--streams is '1,two'; it takes whole numbers"),
        (["--doors", "back"], "--doors is back; it takes each at most once: in-process, chat, ensemble"),
        (["--plot", "/no/such/folder/a.svg"], "give a file in a folder that is there"),
        (["--streams", "900", "--doors", "in-process"], "the artifact has 4 slots"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(artifact: Path, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", str(artifact), *arguments])
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
