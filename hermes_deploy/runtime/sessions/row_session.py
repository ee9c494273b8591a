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

from hermes_deploy.errors import ArtifactError, ServeError
from hermes_deploy.runtime.sessions.limits import Limits, served_context
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
        self.overlaps = False
        # a profile that fills up, or gives few rows of logits, would take several runs
        checks = min(facts.prefill.logits[1], self.prefill_chunk) if facts.prefill.tokens[0] == 1 else 1
        self.draft_tokens = checks - 1
        self._limits = Limits(slots, max_context, self.vocab_size, self.prefill_chunk)
        self.cache_token_bytes = engine.caches.token_bytes * len(engine.caches.names)

    def prefill(self, slot: int, tokens: npt.NDArray[np.int64], start: int, logits: int = 1) -> npt.NDArray[np.float32]:
        """See `Session.prefill`. Raises RequestError where the tokens do not fit."""
        self._limits.check_prefill(slot, tokens, start, logits)
        pieces = cut(self._facts, len(tokens), logits, start, 0 if start == 0 else self._layout.length(slot))
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
        self._limits.check_decode(slots, tokens, positions)
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
        self._limits.check_copy(source, target, start, count)
        if count == 0 or source == target:
            return
        self._engine.caches.copy(self._layout.row(source), self._layout.row(target), start, count)
        self._layout.wrote(target, start, count)

    def close(self) -> None:
        """Frees the weights and the cache. The session cannot be used afterwards."""
        self._engine.close()


def check_limits(facts: EngineFacts, slots: int, max_context: int | None) -> int:
    """The context to serve with. Raises ServeError for limits beyond the build, ArtifactError for an engine
    that no session can run."""
    if facts.trouble:
        raise ArtifactError(f"the engine cannot be served: {facts.trouble}. Build the artifact again.")
    context = served_context(max_context, facts.cache_length)
    if not 1 <= slots <= facts.decode.batch[1]:
        raise ServeError(
            f"slots is {slots}; the artifact was built for 1 to {facts.decode.batch[1]}. "
            "Serve with less, or build again with more --max-slots."
        )
    return context
