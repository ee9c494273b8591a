"""One request on its way through the token loop, and the stream on which its tokens come back.

The loop puts, the receiver takes; putting never waits. What was not taken is merged, so a slow
receiver gets larger pieces and slows nobody. Standard library and numpy only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.sampling import Constraint, Sampling, TokenLogprobs

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Generation:
    """What is asked for. `prompt` [n] token ids; generating a token of `stop_ids` ends the answer.

    `min_tokens`: no stop id is chosen before that many. `index`: which of several answers to one prompt
    this is; each draws from a random stream of its own.

    `logprobs`: None = none, else how many alternatives come with each token (0 = its own alone);
    `prompt_logprobs` the same for the prompt, whose first token has none.

    `priority`: larger goes first. `client`: whose request it is; clients share free slots evenly.
    `deadline`: time.monotonic() after which the request ends with DEADLINE_EXCEEDED, wherever it is.
    `constraint`: masks logits; None costs nothing.
    """

    prompt: npt.NDArray[np.int64]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    index: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    client: str = ""
    deadline: float | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Delta:
    """Tokens since the last take. `finish` is None until the last delta; `error` only with finish "error".

    The stop token itself is not part of `token_ids`. `logprobs`: one for each of `token_ids` where they
    were asked for, else empty. `prompt_logprobs`: in the first delta, one for each prompt token but the first.
    """

    token_ids: tuple[int, ...]
    finish: Finish | None = None
    error: RequestError | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    reused_tokens: int = 0
    """Prompt tokens that were in the cache already."""


class TokenStream:
    """The receiver's end. `take` from one thread; `cancel` from any.

    Streams that are made with one `changed` can be waited for together (`take_any`).
    """

    def __init__(self, changed: threading.Condition | None = None) -> None:
        self.changed = changed or threading.Condition()
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        self._reused = 0
        self._finish: Finish | None = None
        self._error: RequestError | None = None
        self._ended = False
        self._cancelled: Finish | None = None
        self._resting = False
        """Its receiver wants to be woken by the end alone."""
        self.admitted: float | None = None
        """time.monotonic() when it got its slot; set by the loop, as is `first_token`."""
        self.first_token: float | None = None

    def take(self, timeout: float | None = None) -> Delta | None:
        """Everything since the last take; waits for it at most `timeout` seconds, then gives None."""
        taken = take_any([self], timeout)
        return taken[1] if taken is not None else None

    def cancel(self, finish: Finish = "cancelled") -> None:
        """Ends the request at the next step; its slot is free after that. "stop": its text was complete."""
        if self._cancelled is None:
            self._cancelled = finish

    @property
    def cancelled(self) -> Finish | None:
        """As what the receiver wants it ended, None while it wants more."""
        return self._cancelled

    @property
    def ended(self) -> bool:
        """The last delta was taken."""
        return self._ended

    def put(self, token: int, logprobs: TokenLogprobs | None = None, finish: Finish | None = None) -> None:
        """One more token; with `finish` the last one, so that its receiver is woken once."""
        with self.changed:
            if self._finish is not None:
                return
            self._finish = finish
            self._tokens.append(token)
            if logprobs is not None:
                self._logprobs.append(logprobs)
            if finish is not None or not self._resting:
                self.changed.notify_all()

    def read_in(self, reused: int, prompt_logprobs: Sequence[TokenLogprobs]) -> None:
        """The prompt was read: what is known of it goes with the first token."""
        with self.changed:
            self._reused, self._prompt_logprobs = reused, tuple(prompt_logprobs)

    def end(self, finish: Finish, error: RequestError | None = None) -> None:
        """The last event. A stream that has ended stays as it is."""
        with self.changed:
            if self._finish is None:
                self._finish, self._error = finish, error
                self.changed.notify_all()

    def _ready(self) -> bool:
        return not self._ended and bool(self._tokens or self._finish)

    def _take(self) -> Delta:
        delta = Delta(
            tuple(self._tokens),
            self._finish,
            self._error,
            tuple(self._logprobs),
            self._prompt_logprobs,
            self._reused,
        )
        self._tokens, self._logprobs, self._prompt_logprobs = [], [], ()
        self._ended = self._finish is not None
        return delta


def take_any(
    streams: Sequence[TokenStream], timeout: float | None = None, *, not_before: float = 0.0
) -> tuple[int, Delta] | None:
    """(index of the stream, its delta) of the first of `streams` that has something; None after `timeout` seconds.

    `not_before`: time.monotonic() up to which tokens are left to be merged; the end of a stream is given at once.
    The streams share one `changed`.
    """
    changed = streams[0].changed
    with changed:
        _rest(streams, not_before)
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            for index, stream in enumerate(streams):
                if stream._ready():
                    return index, stream._take()
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return None
            changed.wait(left)


def _rest(streams: Sequence[TokenStream], until: float) -> None:
    """Waits up to `until` for an end, without being woken by every token."""
    for stream in streams:
        stream._resting = True
    while (left := until - time.monotonic()) > 0 and not any(stream._finish for stream in streams):
        streams[0].changed.wait(left)
    for stream in streams:
        stream._resting = False
