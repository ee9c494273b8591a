"""The control socket: how `serve` asks the engine how it gets on, and tells it to drain. Standard library only.

A Unix-domain socket in the run folder, which only this user may enter. One line of JSON each way:

    {"do": "status"}              {"dead": null, "draining": false, "active": 2, …}    see Progress
    {"do": "drain", "why": TEXT}  later requests are refused with TEXT; then the same answer
    {"do": "end", "why": TEXT}    the same, and what is still running ends with TEXT

Answered by a thread of the engine's process, so that silence means what it seems to: that process is stopped,
wedged or gone.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

from hermes_deploy.repository.triton_parameters import CONTROL, ENGINE_TIMEOUT, QUEUE_LIMIT, SPECULATION, STRETCH
from hermes_deploy.runtime.running_chat import Progress

Command = Literal["status", "drain", "end"]

_LONGEST_LINE = 1 << 16
_PATIENCE = 0.5
"""Seconds that whoever connected has to send its line."""


class Controlled(Protocol):
    """As much of TokenLoop as can be controlled from outside."""

    @property
    def progress(self) -> Progress: ...

    def drain(self, why: str) -> None: ...

    def end(self, why: str) -> None: ...


class ControlSilent(Exception):
    """Nobody answers on the control socket, or not as agreed. The text says how."""


class LoopSettings(TypedDict, total=False):
    """Arguments of TokenLoop."""

    queue_limit: int
    stretch: float
    engine_timeout: float
    speculation: bool


class ControlServer:
    """Answers on the socket `path`, which it makes, until `close`."""

    def __init__(self, path: Path, loop: Controlled) -> None:
        self._path = path
        with _short(path) as name:
            self._server = _Server(name, _handler(loop))
        threading.Thread(target=self._server.serve_forever, name="control", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


def open_control(parameters: Mapping[str, str], loop: Controlled) -> ControlServer | None:
    """The socket that `serve` wants, by the parameters of config.pbtxt; None where another server than ours runs."""
    return ControlServer(Path(parameters[CONTROL]), loop) if CONTROL in parameters else None


def loop_settings(parameters: Mapping[str, str]) -> LoopSettings:
    """What config.pbtxt says of the token loop; the loop's own defaults where the artifact is run as it was built."""
    given: LoopSettings = {}
    if QUEUE_LIMIT in parameters:
        given["queue_limit"] = int(parameters[QUEUE_LIMIT])
    if STRETCH in parameters:
        given["stretch"] = float(parameters[STRETCH])
    if ENGINE_TIMEOUT in parameters:
        given["engine_timeout"] = float(parameters[ENGINE_TIMEOUT])
    if SPECULATION in parameters:
        given["speculation"] = parameters[SPECULATION] == "true"
    return given


def ask(path: Path, command: Command, why: str = "", *, timeout: float = 1.0) -> Progress:
    """The engine's progress after `command`. Raises ControlSilent, after `timeout` seconds at the latest."""
    line = json.dumps({"do": command, "why": why}).encode() + b"\n"
    try:
        with _short(path) as name, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(name)
            connection.sendall(line)
            with connection.makefile("rb") as answer:
                return Progress(**json.loads(answer.readline(_LONGEST_LINE)))
    except TimeoutError:
        raise ControlSilent(f"the engine's process did not answer within {timeout:g} s") from None
    except (OSError, ValueError, TypeError) as error:
        raise ControlSilent(f"the engine's process does not answer: {type(error).__name__}: {error}") from None


class _Server(socketserver.UnixStreamServer):
    """One caller after the other: a thread for each would have to wait for the interpreter's lock several times
    more, which a fast engine and its answers hardly let go of."""

    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that said nothing, or hung up: its own affair."""


def _handler(loop: Controlled) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        timeout = _PATIENCE

        def handle(self) -> None:
            try:
                answer = _obey(loop, json.loads(self.rfile.readline(_LONGEST_LINE)))
            except (OSError, ValueError, KeyError, TypeError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            try:
                self.wfile.write(json.dumps(answer).encode() + b"\n")
            except OSError:
                return  # whoever asked has gone

    return Handler


def _obey(loop: Controlled, asked: dict[str, str]) -> dict[str, Any]:
    match asked["do"]:
        case "drain":
            loop.drain(asked["why"])
        case "end":
            loop.drain(asked["why"])
            loop.end(asked["why"])
        case "status":
            pass
        case other:
            raise ValueError(f"{other!r} is no command; there are status, drain and end")
    return asdict(loop.progress)


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of `path` that fits into a socket address, which holds 107 bytes; temporary folders can be longer."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
