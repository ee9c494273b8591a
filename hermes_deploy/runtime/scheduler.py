"""What the next step does: who gets a slot, what is read in, who gets a token. No thread, no clock, no engine.

`admissions` and `plan` decide from the state alone and change nothing; the other methods say what has happened. The
token loop drives the same object that the tests drive.

- Free slots go to the highest priority, then to the client that holds the fewest slots, then to the
  longest waiting.
- One chunk of one prompt is read in a step: by turns of the oldest prompt (nobody starves) and of the
  one that is nearest to its first token (a short question does not wait for a long document).
- What of a prompt is in some row already is copied before its next chunk (`prefix_cache`). So chats
  that share a prompt read it once between them, whoever is first.
- Every chat whose prompt is read in gets one token a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hermes_deploy.runtime.prefix_cache import LEAST_READ, Row, choose_row, longer_elsewhere


@dataclass(frozen=True)
class Ticket:
    """What the scheduler knows of a request. `prompt` [n]; `reuse`: it may start behind what is in the cache."""

    key: int
    prompt: npt.NDArray[np.int64]
    client: str = ""
    priority: int = 0
    reuse: bool = True


@dataclass
class Running:
    """A ticket that holds a slot. `read` prompt tokens are in the cache, `reused` of them were found there."""

    ticket: Ticket
    slot: int
    read: int
    reused: int

    @property
    def left(self) -> int:
        """Prompt tokens that are still to be read in."""
        return len(self.ticket.prompt) - self.read


@dataclass(frozen=True)
class Admission:
    """`key` gets `slot`, whose first `kept` tokens are those of its prompt."""

    key: int
    slot: int
    kept: int


@dataclass(frozen=True)
class Copy:
    """Positions start..start+count of row `source` go into row `target`, for chat `key`."""

    key: int
    source: int
    target: int
    start: int
    count: int


@dataclass(frozen=True)
class Chunk:
    """Tokens start..start+count of the prompt of chat `key` go into row `slot`."""

    key: int
    slot: int
    start: int
    count: int


@dataclass(frozen=True)
class Step:
    """In this order; `decode` are the keys that get one token."""

    copy: Copy | None
    prefill: Chunk | None
    decode: tuple[int, ...]


class Scheduler:
    """`slots` rows of `max_context` tokens. Keys of tickets are never used twice."""

    def __init__(self, slots: int, max_context: int) -> None:
        self.slots = slots
        self.waiting: dict[int, Ticket] = {}
        self.running: dict[int, Running] = {}
        self.rows = [Row(max_context) for _ in range(slots)]
        self._steps = 0
        self._chunks = 0

    @property
    def free(self) -> list[int]:
        held = {chat.slot for chat in self.running.values()}
        return [slot for slot in range(self.slots) if slot not in held]

    @property
    def decoding(self) -> int:
        """Chats that get a token in the next step."""
        return sum(chat.left == 0 for chat in self.running.values())

    def admissions(self) -> tuple[Admission, ...]:
        """Who gets which free slot now."""
        free = self.free
        if not free or not self.waiting:
            return ()
        held = Counter(chat.ticket.client for chat in self.running.values())
        waiting = list(self.waiting.values())  # oldest first, and so are the least of equals below
        found = []
        while free and waiting:
            ticket = min(waiting, key=lambda t: (-t.priority, held[t.client]))
            waiting.remove(ticket)
            held[ticket.client] += 1
            slot, kept = choose_row(ticket.prompt if ticket.reuse else ticket.prompt[:1], self.rows, free)
            free.remove(slot)
            found.append(Admission(ticket.key, slot, kept))
        return tuple(found)

    def plan(self, budget: int) -> Step:
        """The next step of those that run. `budget`: most prompt tokens that may be read in it, 0 = none."""
        decode = tuple(key for key, chat in self.running.items() if not chat.left)
        reading = [chat for chat in self.running.values() if chat.left]
        if not reading or not budget:
            return Step(None, None, decode)
        chat = self._next_to_read(reading)
        copy = self._copy(chat)
        start = chat.read + (copy.count if copy else 0)
        left = len(chat.ticket.prompt) - start
        count = min(budget, left)
        if 0 < left - count < LEAST_READ and count > LEAST_READ:
            count -= LEAST_READ - (left - count)  # no single token is left over for the last chunk
        return Step(copy, Chunk(chat.ticket.key, chat.slot, start, count), decode)

    def submit(self, ticket: Ticket) -> None:
        self.waiting[ticket.key] = ticket

    def admit(self, admissions: Iterable[Admission]) -> None:
        self._steps += 1
        for a in admissions:
            ticket = self.waiting.pop(a.key)
            self.running[a.key] = Running(ticket, a.slot, a.kept, a.kept)
            self.rows[a.slot].cut(a.kept)
            self.rows[a.slot].used = self._steps

    def copied(self, copy: Copy) -> None:
        chat = self.running[copy.key]
        self.rows[copy.target].write(chat.ticket.prompt[copy.start : copy.start + copy.count])
        # the row that was copied from proved its worth
        self.rows[copy.source].used = self._steps
        chat.read += copy.count
        chat.reused += copy.count

    def prefilled(self, chunk: Chunk) -> None:
        chat = self.running[chunk.key]
        self.rows[chunk.slot].write(chat.ticket.prompt[chunk.start : chunk.start + chunk.count])
        chat.read += chunk.count
        self._chunks += 1

    def decoded(self, key: int, token: int) -> None:
        """`token` of chat `key` is in the cache."""
        row = self.rows[self.running[key].slot]
        row.write([token])
        row.used = self._steps

    def remove(self, key: int, *, spoiled: bool = False) -> None:
        """Chat `key` has ended, wherever it was. `spoiled`: nobody knows what its row holds now."""
        if self.waiting.pop(key, None) is None:
            row = self.rows[self.running.pop(key).slot]
            row.used = self._steps
            if spoiled:
                # what it was copied from, or copied to, may be spoiled too; and an empty row goes first
                for suspect in [row, *(self.rows[slot] for slot in self.free)]:
                    suspect.cut(0)
                    suspect.used = 0

    def _next_to_read(self, reading: list[Running]) -> Running:
        best = max(chat.ticket.priority for chat in reading)
        first = [chat for chat in reading if chat.ticket.priority == best]
        if self._chunks % 2:
            return first[0]
        return min(first, key=lambda chat: chat.left)

    def _copy(self, chat: Running) -> Copy | None:
        """What some other row has of the prompt of `chat` beyond what is read."""
        if not chat.ticket.reuse:
            return None
        source, length = longer_elsewhere(chat.ticket.prompt, chat.read, self.rows, chat.slot)
        if source == chat.slot:
            return None
        return Copy(chat.ticket.key, source, chat.slot, chat.read, length - chat.read)
