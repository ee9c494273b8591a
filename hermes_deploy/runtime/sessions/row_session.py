"""A `Session` over an engine that runs neighbouring rows of a cache in a device's memory.

Everything that is no device stands here: checks, the cut into runs, which row holds which slot, the order
of answers. A `RowEngine` runs one binding and moves rows; there is one on ONNX Runtime (CPU or CUDA) and
one on TensorRT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import ArtifactError, RequestError, ServeError
from hermes_deploy.runtime.sessions.row_layout import RowLayout
from hermes_deploy.runtime.sessions.row_memory import RowCaches
from hermes_deploy.runtime.sessions.row_steps import EngineFacts, Inputs, Kind, cut, piece_inputs, step_inputs


class RowEngine(Protocol):
    facts: EngineFacts
    caches: RowCaches

    def run(self, kind: Kind, first: int, inputs: Inputs) -> npt.NDArray[np.float32]:
        """Runs rows first..first+B; gives logits [B, R, vocab], which hold until the next run."""
        ...

    def close(self) -> None: ...


class RowSession:
    """See `Session`. `slots` and `max_context` may be lower than what was built."""

    def __init__(self, engine: RowEngine, *, slots: int, max_context: int, prefill_chunk: int | None = None) -> None:
        facts = engine.facts
        self._engine, self._facts = engine, facts
        self._layout = RowLayout(slots)
        self.slots, self.max_context, self.vocab_size = slots, max_context, facts.vocab_size
        self.prefill_chunk = min(prefill_chunk or facts.prefill.tokens[1], facts.prefill.tokens[1], max_context)
        self.cache_token_bytes = engine.caches.token_bytes * len(engine.caches.names)

    def prefill(self, slot: int, tokens: npt.NDArray[np.int64], start: int, logits: int = 1) -> npt.NDArray[np.float32]:
        """See `Session.prefill`. Raises RequestError where the tokens do not fit."""
        count = len(tokens)
        if not 1 <= count <= self.prefill_chunk:
            raise RequestError(f"prefill takes 1 to {self.prefill_chunk} tokens at a time, got {count}.")
        if not 0 <= logits <= count:
            raise RequestError(f"logits of {logits} tokens were asked for; allowed is 0 to {count}, the tokens given.")
        self._check_slots([slot])
        self._check_tokens(tokens)
        self._check_positions(start, start + count)
        pieces = cut(self._facts, count, logits, start, 0 if start == 0 else self._layout.length(slot))
        answers: list[npt.NDArray[np.float32]] = []
        for piece in pieces:
            inputs = piece_inputs(self._facts, piece, tokens, start)
            answer = self._engine.run(piece.kind, self._layout.row(slot), inputs)[0]
            self._layout.wrote(slot, start + piece.first, piece.count)
            if piece.wanted:
                answers.append(answer[-piece.wanted :] if len(pieces) == 1 else answer[-piece.wanted :].copy())
        if len(answers) == 1:
            return answers[0]
        return np.concatenate(answers) if answers else np.empty((0, self.vocab_size), dtype=np.float32)

    def decode(
        self, slots: Sequence[int], tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """See `Session.decode`. Rows change places first where the slots are not neighbours yet."""
        if len(set(slots)) != len(slots) or not len(slots) == len(tokens) == len(positions):
            raise RequestError(f"decode needs one token and one position for each of different slots, got {slots}.")
        self._check_slots(slots)
        self._check_tokens(tokens)
        self._check_positions(int(positions.min()), int(positions.max()) + 1)
        for move in self._layout.gather(slots):
            self._engine.caches.exchange(move)
            self._layout.exchanged(move)
        rows = np.array([self._layout.row(slot) for slot in slots])
        order = rows.argsort()
        wanted = np.zeros((len(slots), self._facts.decode.logits[0]), dtype=np.int64)
        inputs = step_inputs(self._facts, tokens[order, np.newaxis], positions[order], wanted)
        answer = self._engine.run("decode", int(rows.min()), inputs)[:, 0]
        for slot, position in zip(slots, positions.tolist(), strict=True):
            self._layout.wrote(slot, position, 1)
        places = rows - rows.min()
        return answer if (places[:-1] < places[1:]).all() else answer[places]

    def copy(self, source: int, target: int, start: int, count: int) -> None:
        """See `Session.copy`."""
        self._check_slots([source, target])
        if count < 0:
            raise RequestError(f"{count} tokens cannot be copied; allowed is 0 to {self.max_context}.")
        self._check_positions(start, start + count)
        if count == 0 or source == target:
            return
        self._engine.caches.copy(self._layout.row(source), self._layout.row(target), start, count)
        self._layout.wrote(target, start, count)

    def close(self) -> None:
        """Frees the weights and the cache. The session cannot be used afterwards."""
        self._engine.close()

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


def check_limits(facts: EngineFacts, slots: int, max_context: int | None) -> int:
    """The context to serve with. Raises ServeError for limits beyond the build, ArtifactError for an engine
    that no session can run."""
    if facts.trouble:
        raise ArtifactError(f"the engine cannot be served: {facts.trouble}. Build the artifact again.")
    built = facts.cache_length
    context = built if max_context is None else max_context
    if not 2 <= context <= built:
        raise ServeError(
            f"max_context {context} is not possible: the artifact was built for 2 to {built} "
            "tokens. Serve with less, or build again with a larger --max-context."
        )
    if not 1 <= slots <= facts.decode.batch[1]:
        raise ServeError(
            f"slots is {slots}; the artifact was built for 1 to {facts.decode.batch[1]}. "
            "Serve with less, or build again with more --max-slots."
        )
    return context
