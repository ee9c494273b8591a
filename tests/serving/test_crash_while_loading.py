"""What Triton itself does wrong at a start is tried once more, twice at most, and told where it stays."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hermes_deploy.errors import ServeError
from hermes_deploy.serving import Server, launch
from hermes_deploy.serving import server as server_module

ABORT = ["sh", "-c", "echo lock_exception >&2; kill -ABRT $$"]


def crash(monkeypatch: pytest.MonkeyPatch, times: int) -> Callable[[], int]:
    """The first `times` starts abort; the function gives how many starts there were."""
    starts = 0
    real = launch.command

    def command(*arguments: Any, **named: Any) -> list[str]:
        nonlocal starts
        starts += 1
        return ABORT if starts <= times else real(*arguments, **named)

    monkeypatch.setattr(launch, "command", command)
    return lambda: starts


def test_two_crashes_are_told_and_the_server_comes_up(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts = crash(monkeypatch, times=2)
    with (
        caplog.at_level(logging.WARNING),
        Server(artifact, grpc_port=0, http_port=0, metrics_port=0) as server,
    ):
        assert server.grpc_port > 0
    assert starts() == 3
    assert caplog.text.count("lock_exception") == 2
    assert caplog.text.count("starting it once more") == 2


def test_a_server_that_crashes_again_is_an_error_with_its_words(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = crash(monkeypatch, times=9)
    with (
        pytest.raises(ServeError, match=r"(?s)while it was loading \(exit status 134\).*lock_exception"),
        Server(artifact, grpc_port=0, http_port=0, metrics_port=0),
    ):
        pass
    assert starts() == 3


@pytest.mark.parametrize("times", [2, 9])
def test_a_live_process_that_triton_calls_dead_is_asked_again(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    asked = 0
    real = server_module.generates

    def generates(*arguments: Any) -> str:
        nonlocal asked
        asked += 1
        return "HTTP 400: Stub process 'x' is not healthy." if asked <= times else real(*arguments)

    monkeypatch.setattr(server_module, "generates", generates)
    server = Server(artifact, grpc_port=0, http_port=0, metrics_port=0)
    if times == 2:
        with server:
            assert asked == 4, "three times the engine, once the ensemble"
    else:
        with pytest.raises(ServeError, match="generated nothing: HTTP 400: Stub process 'x' is not healthy"), server:
            pass
        assert asked == 3
