"""A system under comparison, as a process that answers one JSON object a line on stdin with one on stdout.

    {"do": "load"}                                       -> {"seconds", "facts": {name: text}, "keeps": bool}
    {"do": "ask", "prompts": [[id]], "max_tokens": n}    -> {"streams": [{"arrivals": [[seconds, tokens]], "ids": []}]}
    {"do": "logits", "sequences": [[id]], "file": path}  -> {"rows": n}

or with {"error": text}. `ask` is greedy and goes on to `max_tokens` whatever the model says; seconds count from
the moment the system is asked. `logits` writes float32 [all tokens, vocab], one sequence after another. `keeps`:
it finds what it read before again, so that a prompt may be read in beforehand. Standard library and numpy only:
each system runs in an environment of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Arrived = Callable[[int, int], None]
"""(which prompt, token id): called when the token is there."""


class System(Protocol):
    keeps: bool

    def load(self) -> dict[str, str]:
        """Everything until the first prompt can be read, imports included; gives facts for people."""
        ...

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, arrived: Arrived) -> None: ...

    def logits(self, sequence: Sequence[int]) -> npt.NDArray[np.float32]:
        """[tokens, vocab]"""
        ...


def serve(system: System) -> None:
    """Until stdin ends. What libraries print goes to stderr: the real stdout is for answers alone."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    doing: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "load": lambda _: _load(system),
        "ask": lambda asked: _ask(system, asked["prompts"], asked["max_tokens"]),
        "logits": lambda asked: _logits(system, asked["sequences"], asked["file"]),
    }
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = doing[asked["do"]](asked)
        except Exception as error:  # told to the parent, which ends the comparison with it
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _load(system: System) -> dict[str, Any]:
    began = time.perf_counter()
    facts = system.load()
    return {"seconds": time.perf_counter() - began, "facts": facts, "keeps": system.keeps}


def _ask(system: System, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
    arrivals: list[list[tuple[float, int]]] = [[] for _ in prompts]
    ids: list[list[int]] = [[] for _ in prompts]

    def arrived(which: int, token: int) -> None:
        arrivals[which].append((time.perf_counter() - began, 1))
        ids[which].append(int(token))

    began = time.perf_counter()
    system.ask(prompts, max_tokens, arrived)
    return {"streams": [{"arrivals": a, "ids": i} for a, i in zip(arrivals, ids, strict=True)]}


def _logits(system: System, sequences: list[list[int]], file: str) -> dict[str, Any]:
    def rows() -> Iterator[npt.NDArray[np.float32]]:
        for sequence in sequences:
            found = np.asarray(system.logits(sequence), dtype=np.float32)
            if len(found) != len(sequence):
                raise ValueError(f"{len(found)} rows of logits came for {len(sequence)} tokens")
            yield found

    every = np.concatenate(list(rows()))
    np.save(file, every)
    return {"rows": len(every)}


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens of both are the same."""
    most = min(len(one), len(other))
    return next((at for at in range(most) if one[at] != other[at]), most)
