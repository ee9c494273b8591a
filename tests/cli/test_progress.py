"""What a person sees of a running build: a bar on a terminal, a line a stage elsewhere, nothing with --quiet."""

from __future__ import annotations

import pytest

from hermes_deploy.cli.progress import Progress
from hermes_deploy.pipeline import StageEvent

EVENTS = [
    StageEvent("graph cpu", "begin", "cpu"),
    StageEvent("graph cpu", "progress", done=30, total=120, unit="[tensors]"),
    StageEvent("graph cpu", "note", "another build is making the same; waiting for it"),
    StageEvent("graph cpu", "end", "cpu", seconds=2.5),
    StageEvent("gate cpu", "begin", "cpu"),
    StageEvent("gate cpu", "end", "cpu", seconds=0.1, reused=True),
]
LINES = [
    "graph cpu: another build is making the same; waiting for it",
    "graph cpu                       2.5 s  cpu",
    "gate cpu                      reused   cpu",
]


def show(*, quiet: bool = False) -> None:
    with Progress(quiet=quiet) as progress:
        for event in EVENTS:
            progress.show(event)


def test_without_a_terminal_there_is_one_line_a_finished_stage(capsys: pytest.CaptureFixture[str]) -> None:
    show()
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.splitlines() == LINES


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    show(quiet=True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    show(quiet=True)
    found = capsys.readouterr()
    assert found.out == found.err == ""


def test_on_a_terminal_a_bar_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "140")
    show()
    text = capsys.readouterr().err
    assert "25%" in text
    assert "30 of 120 [tensors]" in text
    for line in LINES:
        assert line in text
