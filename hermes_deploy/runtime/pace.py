"""How many prompt tokens fit beside a decode, so that reading a long prompt is not felt by those that run.

Takes how long the engine's last calls took, gives a number of tokens. No clock of its own.
"""

from __future__ import annotations

LEAST = 16
"""Tokens. Fewer would cost nearly as much and never end."""
STRETCH = 1.5
"""See `Pace`."""
_FORGET = 0.3
"""Weight of the newest measurement."""


class Pace:
    """`chunk`: most tokens of one prefill call. `stretch`: a chunk may take that many times a decode step.

    While one prompt is read, a running chat then waits for its next token about 1 + stretch times as long as
    usual. Where more prompts are read than chats run, the chunk grows with their number: those who wait
    for a first token are the majority.
    """

    def __init__(self, chunk: int, stretch: float = STRETCH) -> None:
        self._chunk = chunk
        self._stretch = stretch
        self._token_seconds: float | None = None
        self._step_seconds: float | None = None

    def budget(self, decoding: int, reading: int = 1) -> int:
        """Tokens that may be read in a step where `decoding` chats get a token and `reading` wait for a first."""
        if not decoding:
            return self._chunk
        if self._token_seconds is None or self._step_seconds is None:
            return min(LEAST, self._chunk)
        share = self._stretch * max(1.0, reading / decoding)
        fits = int(share * self._step_seconds / self._token_seconds)
        # whole multiples: few shapes that the engine has to get used to
        return min(max(LEAST, fits - fits % LEAST), self._chunk)

    def read(self, tokens: int, seconds: float) -> None:
        """A chunk of `tokens` took that long."""
        self._token_seconds = _blend(self._token_seconds, seconds / tokens)

    def decoded(self, seconds: float) -> None:
        """One decode step took that long."""
        self._step_seconds = _blend(self._step_seconds, seconds)


def _blend(before: float | None, now: float) -> float:
    return now if before is None else (1 - _FORGET) * before + _FORGET * now
