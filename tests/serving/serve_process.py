"""`hermes-deploy serve` as a process of its own, on free ports, as whoever runs it sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hermes_deploy.serving.settings import PORTS

START = [sys.executable, "-m", "hermes_deploy.cli", "serve"]


@dataclass
class ServeProcess:
    process: subprocess.Popen[str]
    said: dict[str, Any]
    """The line that says that it is ready."""

    @property
    def grpc(self) -> str:
        return str(self.said["grpc"])

    def health(self, path: str = "/healthz") -> tuple[int, dict[str, Any]]:
        return ask_health(f"{self.said['health']}{path}")

    def ready(self) -> bool:
        return self.health("/readyz")[0] == 200

    def reasons(self) -> str:
        return " ".join(self.health("/readyz")[1]["reasons"])

    def restarts(self) -> int:
        return int(self.health()[1]["restarts"])

    def started(self) -> list[psutil.Process]:
        """Guard, tritonserver and the models."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def find(self, part: str) -> psutil.Process:
        """tritonserver, or the process of a model, by its name."""
        return next(p for p in self.started() if is_part(p, part))

    def end(self, timeout: float = 40.0) -> tuple[int, str]:
        """Waits for it; exit status and what it wrote on stderr."""
        _, told = self.process.communicate(timeout=timeout)
        return self.process.returncode, told


def is_part(process: psutil.Process, part: str) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    if part == "tritonserver":
        return bool(command) and command[0].endswith("/tritonserver")
    return "stub" in command[0] and f"/{part}/" in command[1] if len(command) > 1 else False


def ask_health(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


@contextmanager
def serving(artifact: Path, environment: dict[str, str] | None = None, **settings: Any) -> Iterator[ServeProcess]:
    """Ready, and killed at the end if it still runs."""
    given = {**dict.fromkeys(PORTS, 0), **settings}
    flags = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    process = subprocess.Popen(
        [*START, str(artifact), "--json", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        said = json.loads(line) if line else {}
        assert said.get("ready"), line + process.communicate()[1]
        yield ServeProcess(process, said)
    finally:
        process.kill()
        process.communicate()
