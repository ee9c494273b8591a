"""One request on its way through the token loop, and the stream on which its tokens come back.

The loop puts, the receiver takes; putting never waits. What was not taken is merged, so a slow
receiver gets larger pieces and slows nobody. Standard library and numpy only.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.sampling import Sampling

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Generation:
    """What is asked for. `prompt` [n] token ids; generating a token of `stop_ids` ends the answer."""

    prompt: npt.NDArray[np.int64]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Delta:
    """Tokens since the last take. `finish` is None until the last delta; `error` only with finish "error".

    The stop token itself is not part of `token_ids`.
    """

    token_ids: tuple[int, ...]
    finish: Finish | None = None
    error: RequestError | None = None


class TokenStream:
    """The receiver's end. `take` from one thread; `cancel` from any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tokens: list[int] = []
        self._finish: Finish | None = None
        self._error: RequestError | None = None
        self._cancelled = False

    def take(self, timeout: float | None = None) -> Delta | None:
        """Everything since the last take; waits for it at most `timeout` seconds, then gives None."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._tokens or self._finish, timeout):
                return None
            tokens, self._tokens = tuple(self._tokens), []
            return Delta(tokens, self._finish, self._error)

    def cancel(self) -> None:
        """Ends the request at the next step; its slot is free after that."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def put(self, token: int) -> None:
        with self._changed:
            self._tokens.append(token)
            self._changed.notify()

    def end(self, finish: Finish, error: RequestError | None = None) -> None:
        with self._changed:
            self._finish, self._error = finish, error
            self._changed.notify()
