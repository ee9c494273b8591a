"""A system under comparison in a process of its own, which is told what to do in lines of JSON.

`scripts/bench/peer_workers/serving.py` is the other end and says what the lines hold. A worker that fails or
ends is a WorkerError with the end of what it said on stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes_deploy.benchmarking.listening import Arrival, NotMeasured, Timeline

_TOLD = 1500
"""Characters of a failed worker's stderr that its error repeats."""


class WorkerError(NotMeasured):
    """What the worker says of its failure."""


@dataclass(frozen=True)
class Loaded:
    """`seconds` until a prompt can be read; `facts`: for people and for the roofline; `keeps`: it finds prompts
    that it has read before."""

    seconds: float
    facts: dict[str, Any]
    keeps: bool


class Worker:
    """Starts `command`. `name`: of the system. Ends the process when closed."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.name = name
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def load(self) -> Loaded:
        answer = self.ask_for({"do": "load"})
        return Loaded(answer["seconds"], answer["facts"], answer["keeps"])

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Timeline]:
        """Greedy answers of `max_tokens` tokens to all prompts at once; times from the moment of asking, which is 0."""
        asked = {"do": "ask", "prompts": [list(map(int, ids)) for ids in prompts], "max_tokens": max_tokens}
        timelines = [
            Timeline(0.0, tuple(Arrival(at, count) for at, count in each["arrivals"]), tuple(each["ids"]), None)
            for each in self.ask_for(asked)["streams"]
        ]
        lengths = [len(timeline.token_ids) for timeline in timelines]
        if lengths != [max_tokens] * len(prompts):
            raise WorkerError(
                f"{self.name} answered {lengths} tokens to {len(prompts)} prompts; {max_tokens} were asked for"
            )
        return timelines

    def logits(self, sequences: Sequence[Sequence[int]], file: Path) -> None:
        """Writes float32 [all tokens, vocab] as .npy, one sequence after another."""
        self.ask_for({"do": "logits", "sequences": [list(map(int, ids)) for ids in sequences], "file": str(file)})

    def ask_for(self, what: dict[str, Any]) -> Any:
        """Its answer to any line. Raises WorkerError."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise WorkerError(f"{self.name} ended with code {code} at {what['do']!r}:\n{self._said()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name} failed at {what['do']!r}: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def _said(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-_TOLD:].strip()
