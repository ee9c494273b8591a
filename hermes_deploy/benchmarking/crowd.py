"""Many more callers than slots: what they get, and whether every token of it came once, in order.

Each client is a thread that asks, reads to the end and asks again, with a pause after a refusal that grows as a
well-behaved client's does. The answers are judged by what is in them, not by how many came: see `Faults`.
"""

from __future__ import annotations

import collections
import itertools
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hermes_deploy.benchmarking.prompts import Prompt
from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.client import Client, ClientError, Door, Overloaded, Piece

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds after a refusal, doubling with each that follows, a random quarter less: as the openai package does it. It
also does what the server says where that is longer."""

TICK = 5.0


@dataclass
class Faults:
    """What went wrong, by kind; each is a count of answers.

    `errors`: by the name of the error. `uncounted`: a piece whose running count of tokens is not that of the piece
    before plus its own: one was lost, doubled or came out of order. `misspelled`: the text is not what the ids spell.
    `different`: the ids are not those of the lone answer, which near ties may cause (docs/token-loop.md).
    """

    errors: collections.Counter[str] = field(default_factory=collections.Counter)
    uncounted: int = 0
    misspelled: int = 0
    different: int = 0


@dataclass(frozen=True)
class Crowd:
    """What `clients` callers got in `seconds`. `tokens`: that came in that time, also of answers that had not ended.

    `first_token_s`: of each answer that began, from its question to its first token, the wait in the queue included.
    """

    clients: int
    seconds: float
    answers: int
    refused: int
    tokens: int
    first_token_s: tuple[float, ...]
    faults: Faults

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class Answers:
    """Asks and judges for all clients. `expected`: the lone answer's ids to each prompt, by its place."""

    def __init__(
        self,
        client: Client,
        door: Door,
        tokenizer: ChatTokenizer,
        prompts: Sequence[Prompt],
        max_tokens: int,
        expected: Mapping[int, Sequence[int]],
    ) -> None:
        self._client = client
        self._door: Door = door
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._max_tokens = max_tokens
        self._expected = expected
        self._lock = threading.Lock()
        self.faults = Faults()
        self.answers = self.refused = self.tokens = 0
        self.first_token_s: list[float] = []

    def one(self, place: int) -> float | None:
        """Asks the prompt at `place`. Where it was refused for want of room, which is no fault: the seconds after which
        the server wants to be asked again, 0 where it does not say."""
        asked = time.monotonic()
        ids: list[int] = []
        text, counted = "", True
        try:
            with self._client.stream(
                self._prompts[place].messages,
                max_tokens=self._max_tokens,
                temperature=0.0,
                repetition_penalty=1.0,
                door=self._door,
            ) as stream:
                for piece in stream:
                    counted = self._note(piece, len(ids), asked) and counted
                    ids += piece.token_ids
                    text += piece.text
        except Overloaded as full:
            with self._lock:
                self.refused += 1
            return full.retry_after_s or 0.0
        except ClientError as error:
            with self._lock:
                self.faults.errors[f"{type(error).__name__}: {str(error)[:160]}"] += 1
            return None
        spelled = self._tokenizer.decode(ids)
        with self._lock:
            self.answers += 1
            self.faults.uncounted += not counted
            self.faults.misspelled += text != spelled
            self.faults.different += place in self._expected and ids != list(self._expected[place])
        return None

    def _note(self, piece: Piece, before: int, asked: float) -> bool:
        with self._lock:
            self.tokens += len(piece.token_ids)
            if not before:
                self.first_token_s.append(time.monotonic() - asked)
        return piece.usage.completion_tokens == before + len(piece.token_ids)


def crowd(answers: Answers, clients: int, prompts: int, seconds: float, tick: Callable[[float], None]) -> Crowd:
    """`clients` callers for `seconds`, over `prompts` prompts in turn. `tick` is called every `TICK` seconds with the
    seconds since the start. Answers that run at the end are read to their end, and judged; tokens that
    come after `seconds` are not counted."""
    stop = threading.Event()
    turn = itertools.count()

    def caller(seed: int) -> None:
        dice, pause = random.Random(seed), FIRST_PAUSE
        while not stop.is_set():
            told = answers.one(next(turn) % prompts)
            if told is None:
                pause = FIRST_PAUSE
            else:
                stop.wait(max(pause, told) * dice.uniform(0.75, 1))
                pause = min(2 * pause, LONGEST_PAUSE)

    threads = [threading.Thread(target=caller, args=(seed,), name="caller", daemon=True) for seed in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while (since := time.monotonic() - began) < seconds:
        tick(since)
        time.sleep(min(TICK, seconds - since))
    tokens, took = answers.tokens, time.monotonic() - began
    stop.set()
    for thread in threads:
        thread.join()
    return Crowd(
        clients,
        took,
        answers.answers,
        answers.refused,
        tokens,
        tuple(answers.first_token_s),
        answers.faults,
    )
