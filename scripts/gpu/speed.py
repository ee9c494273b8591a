"""How long a session's calls take; every number is of this session alone, in this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hermes_deploy.runtime.session import Session


@dataclass(frozen=True)
class Sizes:
    """`prompt` tokens are prefilled; `streams` chats decode `steps` tokens at each of `depths`."""

    prompt: int
    depths: tuple[int, ...]
    streams: tuple[int, ...]
    steps: int
    rounds: int


FULL = Sizes(prompt=512, depths=(128, 1024), streams=(1, 8), steps=64, rounds=5)
DRY = Sizes(prompt=24, depths=(8, 40), streams=(1, 4), steps=3, rounds=2)


def measure(session: Session, sizes: Sizes) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    text = rng.integers(0, session.vocab_size, session.max_context)

    def prefill(slot: int, count: int) -> None:
        for start in range(0, count, session.prefill_chunk):
            chunk = text[start : min(start + session.prefill_chunk, count)]
            session.prefill(slot, chunk, start, int(start + len(chunk) == count))

    first = seconds(lambda: prefill(0, sizes.prompt))
    prompts = [seconds(lambda: prefill(0, sizes.prompt)) for _ in range(sizes.rounds)]
    answer: dict[str, Any] = {
        "first_prefill_ms": first * 1e3,
        "prefill": {"tokens": sizes.prompt, **spread(prompts, sizes.prompt)},
        "decode": [],
    }
    for depth in sizes.depths:
        for slot in range(max(sizes.streams)):
            prefill(slot, depth)
        for streams in sizes.streams:
            slots = list(range(streams))
            times = [
                seconds(lambda slots=slots, at=at: session.decode(slots, text[slots], np.full(len(slots), at)))
                for _ in range(sizes.rounds)
                for at in range(depth, depth + sizes.steps)
            ]
            # the first step of a batch binds and may compile
            steps = spread(times[1:], streams)
            answer["decode"].append({"at": depth, "streams": streams, "first_step_ms": times[0] * 1e3, **steps})
    answer["moving rows"] = moving(session, max(sizes.depths), sizes.rounds)
    return answer


def moving(session: Session, depth: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a copied row, and of a decode of two rows that do not lie together over one of two that do."""
    text = np.arange(2)
    at = np.array([depth, depth])
    copied = [
        seconds(lambda: (session.copy(0, 1, 0, depth), session.decode([1], text[:1], at[:1]))) for _ in range(rounds)
    ]
    alone = [seconds(lambda: session.decode([1], text[:1], at[:1])) for _ in range(rounds)]
    together = [seconds(lambda: session.decode([0, 1], text, at)) for _ in range(rounds)]
    apart = []
    for _ in range(rounds):
        session.decode([0, 1], text, at)
        apart.append(seconds(lambda: session.decode([0, 2], text, at)))
    return {
        "tokens": depth,
        "copy_ms": (statistics.median(copied) - statistics.median(alone)) * 1e3,
        "rows_brought_together_ms": (statistics.median(apart) - statistics.median(together)) * 1e3,
    }


def spread(times: list[float], tokens: int) -> dict[str, float]:
    middle = statistics.median(times)
    return {
        "ms": middle * 1e3,
        "least_ms": min(times) * 1e3,
        "greatest_ms": max(times) * 1e3,
        "tokens_per_second": tokens / middle,
    }


def seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began
