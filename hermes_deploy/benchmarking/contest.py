"""What is measured of each system that stands beside ours: every measure with the same prompts to all, in turns.

Prompts are made anew for every round, so that no cache holds them, and are the same for every system of the round.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hermes_deploy.benchmarking.listening import NotMeasured, tokens_per_second
from hermes_deploy.benchmarking.memory import memory_of
from hermes_deploy.benchmarking.prompts import Prompt, Prompts
from hermes_deploy.benchmarking.report import Collected, What
from hermes_deploy.benchmarking.worker import Worker
from hermes_deploy.verification import Reference
from hermes_deploy.verification.measures import Comparison, Measures

PREFILL, DECODE = "prefill", "decode"
WITH_PROMPTS = "prompts and answers"
COLD, SECOND = "first token, cold", "first token, second turn"
LOAD, MEMORY_LOADED, MEMORY_PEAK = "load", "PSS, loaded", "PSS, at most"
_SETTLING = 0.15
"""Seconds between two systems: threads of the one before spin for a moment."""


@dataclass(frozen=True)
class Lengths:
    """In tokens. `prefill`: of the prompt that is read; `contexts`: before the `decoded` tokens of one stream;
    `streams` at once have prompts of `many` tokens; a chat has `history` tokens and an answer of `answer` before its
    second turn; memory is looked at with `filled` tokens in every stream."""

    prefill: int = 512
    contexts: tuple[int, ...] = (128, 1024)
    decoded: int = 128
    streams: int = 8
    many: int = 128
    history: int = 1000
    answer: int = 32
    filled: int = 1024


QUICK = Lengths(decoded=48)
WARMING = Lengths(decoded=8, answer=4)


@dataclass(frozen=True)
class Contestant:
    """A loaded system. `keeps`: it finds prompts that it has read before."""

    worker: Worker
    keeps: bool

    @property
    def name(self) -> str:
        return self.worker.name


def measure_round(
    number: int,
    contestants: Sequence[Contestant],
    prompts: Prompts,
    lengths: Lengths,
    found: Collected,
    tell: Callable[[str], None],
) -> None:
    """Every measure of every contestant once. Each round another one is the first."""
    first = number % len(contestants)
    turns = [*contestants[first:], *contestants[:first]]

    def each(what: str, measure: Callable[[Contestant], None]) -> None:
        for contestant in turns:
            tell(f"{what}: {contestant.name}")
            time.sleep(_SETTLING)
            found.attempt(f"{what}, {contestant.name}", lambda c=contestant: measure(c))  # type: ignore[misc]

    prompt = _exact(prompts, lengths.prefill)
    each(PREFILL, lambda c: measure_prefill(c, prompt, found))
    for context in lengths.contexts:
        alone = [_exact(prompts, context)]
        each(f"{DECODE} at {context:,}", lambda c, alone=alone: measure_decode(c, alone, lengths.decoded, found))  # type: ignore[misc]
    many = [_exact(prompts, lengths.many) for _ in range(lengths.streams)]
    each(f"{DECODE}, {lengths.streams} streams", lambda c: measure_decode(c, many, lengths.decoded, found))
    fresh = [_exact(prompts, lengths.many) for _ in range(lengths.streams)]
    each(WITH_PROMPTS, lambda c: measure_with_prompts(c, fresh, lengths.decoded, found))
    chat = _exact(prompts, lengths.history)
    question = _question(prompts, chat)
    each("turns", lambda c: measure_turns(c, chat, question, lengths.answer, found))


def measure_prefill(contestant: Contestant, prompt: Prompt, found: Collected) -> None:
    """Prompt tokens by the time to the first token of the answer."""
    (timeline,) = contestant.worker.ask([_ids(prompt)], 1)
    speed = len(prompt.ids) / timeline.first_token_s
    found.keep(What(PREFILL, "tokens/s", contestant.name, 1, len(prompt.ids)), speed)


def measure_decode(contestant: Contestant, prompts: Sequence[Prompt], decoded: int, found: Collected) -> None:
    """Tokens of all in the time in which all get tokens; who keeps what was read has read the prompts before."""
    if contestant.keeps and len(prompts) > 1:
        for prompt in prompts:
            contestant.worker.ask([_ids(prompt)], 1)
    # those that are in the cache begin one a step
    more = 2 * len(prompts) if len(prompts) > 1 else 0
    timelines = contestant.worker.ask([_ids(prompt) for prompt in prompts], decoded + more)
    what = What(DECODE, "tokens/s", contestant.name, len(prompts), len(prompts[0].ids))
    found.keep(what, tokens_per_second(timelines))


def measure_with_prompts(contestant: Contestant, prompts: Sequence[Prompt], decoded: int, found: Collected) -> None:
    """Generated tokens of all by the whole time, from asking to the last token of the last."""
    timelines = contestant.worker.ask([_ids(prompt) for prompt in prompts], decoded)
    seconds = max(timeline.arrivals[-1].at for timeline in timelines)
    what = What(WITH_PROMPTS, "tokens/s", contestant.name, len(prompts), len(prompts[0].ids))
    found.keep(what, len(prompts) * decoded / seconds)


def measure_turns(contestant: Contestant, chat: Prompt, question: list[int], answer: int, found: Collected) -> None:
    """Time to the first token of a chat, and of its second turn: the same tokens, its answer, a short question."""
    (first,) = contestant.worker.ask([_ids(chat)], answer)
    (second,) = contestant.worker.ask([[*_ids(chat), *first.token_ids, *question]], 1)
    where = (contestant.name, 1, len(chat.ids))
    found.keep(What(COLD, "ms", *where), first.first_token_s * 1e3)
    found.keep(What(SECOND, "ms", *where), second.first_token_s * 1e3)


def measure_load(open_worker: Callable[[], Worker], found: Collected) -> None:
    """A process more: what its load takes (imports included, files in the page cache) and its memory after it."""
    worker = open_worker()
    try:
        loaded = worker.load()
        found.keep(What(LOAD, "s", worker.name), loaded.seconds)
        found.keep(What(MEMORY_LOADED, "MB", worker.name), memory_of([worker.pid]).total / 1e6)
    finally:
        worker.close()


def measure_peak(contestant: Contestant, prompts: Prompts, lengths: Lengths, found: Collected) -> None:
    """The most memory that is seen, every 0.1 s, while all streams read `filled` tokens and answer."""
    asked = [_ids(_exact(prompts, lengths.filled)) for _ in range(lengths.streams)]
    failures: list[Exception] = []

    def work() -> None:
        try:
            contestant.worker.ask(asked, 16)
        except NotMeasured as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    most = 0
    while thread.is_alive():
        most = max(most, memory_of([contestant.worker.pid]).total)
        thread.join(0.1)
    if failures:
        raise failures[0]
    what = What(MEMORY_PEAK, "MB", contestant.name, lengths.streams, lengths.filled)
    found.keep(what, max(most, memory_of([contestant.worker.pid]).total) / 1e6)


def measure_quality(worker: Worker, reference: Reference, folder: Path) -> Measures:
    """Of its logits against the reference's, at every position that the gate would compare."""
    file = folder / f"{worker.name}.npy"
    worker.logits(reference.sequences, file)
    logits = np.load(file, mmap_mode="r")
    head = reference.head().T
    if logits.shape != (len(reference.hidden), head.shape[1]):
        raise NotMeasured(f"{worker.name} gave logits {logits.shape} for {len(reference.hidden)} tokens")
    comparison, start = Comparison(len(reference.sequences)), 0
    for chat, (ids, first) in enumerate(zip(reference.sequences, reference.firsts, strict=True)):
        rows = slice(start + first, start + len(ids))
        following = np.array(ids[first + 1 :], dtype=np.int64)
        comparison.add(chat, first, reference.hidden[rows] @ head, np.array(logits[rows]), following)
        start += len(ids)
    file.unlink()
    return comparison.measures(0.0)


def _exact(prompts: Prompts, tokens: int) -> Prompt:
    """A prompt that was never given before, of `tokens` tokens to the token: a static batch takes one length only."""
    for _ in range(64):
        prompt = prompts.of(tokens, prompts.fresh())
        if len(prompt.ids) == tokens:
            return prompt
    raise NotMeasured(f"no prompt of exactly {tokens:,} tokens can be made of the packaged texts")


def _question(prompts: Prompts, chat: Prompt) -> list[int]:
    """The tokens of a second question, behind whatever was answered."""
    longer = prompts.next_turn(chat, "").ids
    if longer[: len(chat.ids)].tolist() != chat.ids.tolist():
        raise NotMeasured("this template changes what it has said before: a second turn has other tokens")
    question: list[int] = longer[len(chat.ids) :].tolist()
    return question


def _ids(prompt: Prompt) -> list[int]:
    ids: list[int] = prompt.ids.tolist()
    return ids
