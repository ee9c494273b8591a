"""One answer as its receiver sees it: a thread of its own reads it and notes when each piece came.

Takes a generator of pieces (their token ids), whoever makes it; knows no engine and no server. The thread is
there on purpose: a caller of the library and each request in the server have one, and it costs what it costs.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np


class NotMeasured(Exception):
    """A measure that cannot be had here; its text says why. It becomes a line of the report, not a failure."""


@dataclass(frozen=True)
class Piece:
    """`token_ids` that came together (none: nothing came for a while); `reused`: prompt tokens that were found
    in the cache, None where the door does not say."""

    token_ids: tuple[int, ...]
    reused: int | None = None


Pieces = Callable[[], Generator[Piece, None, None]]
"""Asks, and gives what comes."""


@dataclass(frozen=True)
class Arrival:
    """`at`: time.monotonic(), seconds."""

    at: float
    tokens: int


@dataclass(frozen=True)
class Timeline:
    """`asked`: time.monotonic() just before the request went out. `arrivals`: pieces with tokens, in order."""

    asked: float
    arrivals: tuple[Arrival, ...]
    token_ids: tuple[int, ...]
    reused: int | None

    @property
    def first_token_s(self) -> float:
        """Seconds from the question to the first token. Raises NotMeasured where none came."""
        if not self.arrivals:
            raise NotMeasured("the answer ended before its first token")
        return self.arrivals[0].at - self.asked


class Listener:
    """Reads `pieces()` in a thread that starts now. `asked`: when the request went out, None = when the thread asks.

    `cancel` lets go of the request at the next piece: `pieces` is closed, which must end it.
    """

    def __init__(self, pieces: Pieces, asked: float | None = None) -> None:
        self._pieces = pieces
        self._asked = asked
        self._arrivals: list[Arrival] = []
        self._token_ids: list[int] = []
        self._reused: int | None = None
        self._first = threading.Event()
        self._cancelled = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
        self._thread.start()

    def await_first(self) -> None:
        """Until the first token came. Raises what ended the request before it, NotMeasured where nothing did."""
        self._first.wait()
        if not self._arrivals:
            self.done()
            raise NotMeasured("the answer ended before its first token")

    def cancel(self) -> None:
        self._cancelled = True

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def so_far(self) -> Timeline:
        """What has come by now."""
        return Timeline(self._asked or 0.0, tuple(self._arrivals), tuple(self._token_ids), self._reused)

    def done(self) -> Timeline:
        """Waits for the end. Raises the error that the request ended with."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.so_far()

    def _listen(self) -> None:
        try:
            if self._asked is None:
                self._asked = time.monotonic()
            with contextlib.closing(self._pieces()) as pieces:
                for piece in pieces:
                    self._note(piece, time.monotonic())
                    if self._cancelled:
                        break
        except Exception as error:  # told by done(), to the thread that wants the numbers
            self._failure = error
        finally:
            self._first.set()

    def _note(self, piece: Piece, now: float) -> None:
        if piece.token_ids:
            self._arrivals.append(Arrival(now, len(piece.token_ids)))
            self._token_ids += piece.token_ids
            self._reused = piece.reused if self._reused is None else self._reused
            self._first.set()


def await_all(listeners: Sequence[Listener]) -> list[Timeline]:
    """Every answer, once all have ended."""
    return [listener.done() for listener in listeners]


def together(timelines: Sequence[Timeline]) -> tuple[float, float]:
    """From when the last of them has begun until the first ends: time in which all get tokens, as monotonic seconds.

    Raises NotMeasured where there is no such time.
    """
    if not all(timeline.arrivals for timeline in timelines):
        raise NotMeasured("an answer ended before its first token")
    start = max(timeline.arrivals[0].at for timeline in timelines)
    end = min(timeline.arrivals[-1].at for timeline in timelines)
    if end <= start:
        lengths = ", ".join(str(len(timeline.token_ids)) for timeline in timelines)
        raise NotMeasured(f"the answers were never all running at once (their lengths in tokens: {lengths})")
    return start, end


def tokens_per_second(timelines: Sequence[Timeline]) -> float:
    """Tokens of all of them in the time in which all get tokens, by that time."""
    start, end = together(timelines)
    came = sum(a.tokens for timeline in timelines for a in timeline.arrivals if start < a.at <= end)
    return came / (end - start)


def gaps(timelines: Sequence[Timeline], start: float, end: float) -> list[float]:
    """Seconds between one piece and the next of the same answer, of those that came from `start` to `end`.

    Tokens that a receiver took together count as one piece: that is what a reader sees.
    """
    return [
        later.at - earlier.at
        for timeline in timelines
        for earlier, later in itertools.pairwise(timeline.arrivals)
        if start <= later.at <= end
    ]


def percentile(values: Sequence[float], percent: float) -> float:
    """Raises NotMeasured where there are no values."""
    if not values:
        raise NotMeasured("nothing came in the time that was looked at")
    return float(np.percentile(values, percent))
