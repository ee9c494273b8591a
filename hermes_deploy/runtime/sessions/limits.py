"""What every session refuses, in the same words: what does not fit its rows, its context or its vocabulary. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import RequestError, ServeError


@dataclass(frozen=True)
class Limits:
    """As the fields of `Session`. Each check raises RequestError, OUT_OF_RANGE where the context is too short."""

    slots: int
    max_context: int
    vocab_size: int
    prefill_chunk: int

    def check_prefill(self, slot: int, tokens: npt.NDArray[np.int64], start: int, logits: int) -> None:
        count = len(tokens)
        if not 1 <= count <= self.prefill_chunk:
            raise RequestError(f"prefill takes 1 to {self.prefill_chunk} tokens at a time, got {count}.")
        if not 0 <= logits <= count:
            raise RequestError(f"logits of {logits} tokens were asked for; allowed is 0 to {count}, the tokens given.")
        self._check_slots([slot])
        self._check_tokens(tokens)
        self._check_positions(start, start + count)

    def check_decode(
        self, slots: Sequence[int], tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> None:
        if len(set(slots)) != len(slots) or not len(slots) == len(tokens) == len(positions):
            raise RequestError(f"decode needs one token and one position for each of different slots, got {slots}.")
        self._check_slots(slots)
        self._check_tokens(tokens)
        self._check_positions(int(positions.min()), int(positions.max()) + 1)

    def check_copy(self, source: int, target: int, start: int, count: int) -> None:
        self._check_slots([source, target])
        if count < 0:
            raise RequestError(f"{count} tokens cannot be copied; allowed is 0 to {self.max_context}.")
        self._check_positions(start, start + count)

    def _check_slots(self, slots: Sequence[int]) -> None:
        if not slots or min(slots) < 0 or max(slots) >= self.slots:
            raise RequestError(f"slots are 0 to {self.slots - 1}, got {list(slots)}.")

    def _check_tokens(self, tokens: npt.NDArray[np.int64]) -> None:
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise RequestError(f"token ids are 0 to {self.vocab_size - 1}, got {tokens.min()} to {tokens.max()}.")

    def _check_positions(self, start: int, end: int) -> None:
        if start < 0 or end > self.max_context:
            raise RequestError(
                f"positions {start} to {end - 1} do not fit: this server holds {self.max_context} tokens a chat.",
                code="OUT_OF_RANGE",
            )


def served_context(asked: int | None, built: int) -> int:
    """Tokens a row to serve with, at most what was built. Raises ServeError."""
    context = built if asked is None else asked
    if not 2 <= context <= built:
        raise ServeError(
            f"max_context {context} is not possible: the artifact was built for 2 to {built} "
            "tokens. Serve with less, or build again with a larger --max-context."
        )
    return context
