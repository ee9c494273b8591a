"""What the next step does, decided from numbers alone: no thread, no clock, no engine.

First come, first served: free slots go to the longest waiting; the oldest prompt that is not
read in yet gets one chunk; every chat whose prompt is read in gets one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Running:
    """A chat that holds a slot: `prefilled` of `prompt` tokens are in the cache."""

    key: int
    slot: int
    prompt: int
    prefilled: int


@dataclass(frozen=True)
class Chunk:
    """Tokens start..start+count of the prompt of chat `key` go into row `slot`."""

    key: int
    slot: int
    start: int
    count: int


@dataclass(frozen=True)
class Step:
    """`admit`: (key, slot) of chats that get a slot now. `decode`: keys that get one token."""

    admit: tuple[tuple[int, int], ...]
    prefill: Chunk | None
    decode: tuple[int, ...]


def plan_step(waiting: Sequence[tuple[int, int]], running: Sequence[Running], slots: int, prefill_chunk: int) -> Step:
    """The next step. `waiting` holds (key, prompt tokens) and `running` chats, both oldest first."""
    taken = {chat.slot for chat in running}
    free = [slot for slot in range(slots) if slot not in taken]
    admitted = tuple((key, slot) for (key, _), slot in zip(waiting, free, strict=False))
    prompts = dict(waiting)
    everyone = [*running, *(Running(key, slot, prompts[key], 0) for key, slot in admitted)]
    reading = next((chat for chat in everyone if chat.prefilled < chat.prompt), None)
    chunk = None
    if reading is not None:
        count = min(prefill_chunk, reading.prompt - reading.prefilled)
        chunk = Chunk(reading.key, reading.slot, reading.prefilled, count)
    decode = tuple(chat.key for chat in running if chat.prefilled == chat.prompt)
    return Step(admitted, chunk, decode)
