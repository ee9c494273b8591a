"""Does an answer depend on who else is asking? Greedy answers alone, in company, and with their prompt in the cache.

An engine computes a batch, or a prompt in other pieces, by other kernels, in another order of sums: the last
bits of logits differ. Where the two best tokens are that close, another one is picked and the answer goes on
differently. Told are the share of answers for which that happens and how close it was: a large distance
would be a fault of the loop (a row that another chat wrote into), not of rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hermes_deploy.benchmarking.doors import InProcess
from hermes_deploy.benchmarking.listening import Timeline, await_all
from hermes_deploy.benchmarking.prompts import Prompt
from hermes_deploy.benchmarking.report import Collected, What
from hermes_deploy.runtime.session import Session

DIFFER, WIDEST, EARLIEST = "answers that differ", "widest of two best logits there", "earliest difference"
COMPANY, HALF, AGAIN = "in company", "half of its prompt in the cache", "all of its prompt in the cache"


@dataclass(frozen=True)
class Lone:
    """A greedy answer. `margins` [n]: by how much the best logit was above the second at each token."""

    tokens: tuple[int, ...]
    margins: tuple[float, ...]


def lone_answer(session: Session, prompt: Prompt, tokens: int) -> Lone:
    """Straight from the session: nobody beside it, nothing reused, no loop."""
    ids, found, margins = prompt.ids, list[int](), list[float]()
    tokens = min(tokens, session.max_context - len(ids))
    logits = np.empty((0, session.vocab_size), dtype=np.float32)
    for start in range(0, len(ids), session.prefill_chunk):
        chunk = ids[start : start + session.prefill_chunk]
        logits = session.prefill(0, chunk, start, int(start + len(chunk) == len(ids)))
    while True:
        row = logits[-1]
        second, best = np.partition(row, -2)[-2:].tolist()
        found.append(int(row.argmax()))
        margins.append(best - second)
        if len(found) == tokens:
            return Lone(tuple(found), tuple(margins))
        position = len(ids) + len(found) - 1
        logits = session.decode([0], np.array(found[-1:], dtype=np.int64), np.array([position], dtype=np.int64))


def answers_in_company(door: InProcess, prompts: Sequence[Prompt], tokens: int, at_once: int) -> list[Timeline]:
    """`at_once` of them at a time."""
    found = []
    for start in range(0, len(prompts), at_once):
        found += await_all(door.ask(prompts[start : start + at_once], tokens))
    return found


def answers_behind_prefix(door: InProcess, prompts: Sequence[Prompt], tokens: int, share: float) -> list[Timeline]:
    """Each alone, right after a chat that has the first `share` of its prompt; of all of it the last token is read."""
    found = []
    for prompt in prompts:
        before = Prompt((), prompt.ids[: max(1, int(len(prompt.ids) * share))])
        await_all(door.ask([before], 1))
        found += await_all(door.ask([prompt], tokens))
    return found


def compare(lone: Sequence[Lone], others: Sequence[Timeline], how: str, found: Collected) -> None:
    """Rows under the name `how`: share of answers that differ, and of those the earliest place and widest margin."""
    places = [_first_difference(one.tokens, other.token_ids) for one, other in zip(lone, others, strict=True)]
    differing = [(place, one.margins[place]) for place, one in zip(places, lone, strict=True) if place is not None]
    found.keep(What(DIFFER, "share", how), len(differing) / len(lone))
    found.keep(What("answers that were compared", "answers", how), len(lone))
    reused = [other.reused or 0 for other in others]
    found.keep(What("prompt tokens found in the cache, mean", "tokens", how), sum(reused) / len(reused))
    if differing:
        found.keep(What(EARLIEST, "tokens", how), min(place for place, _ in differing))
        found.keep(What(WIDEST, "logits", how), max(margin for _, margin in differing))
    else:
        found.leave_out(f"{WIDEST}, {how}", "no answer differs")


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place at which they are not the same token, None where the answers are equal."""
    if len(other) < len(one):
        # it ended, which none of these may
        return len(other)
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
