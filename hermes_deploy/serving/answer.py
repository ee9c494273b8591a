"""Ids to released text: detokenizer, then stop text, and how the answer ended. One per answer."""

from __future__ import annotations

from collections.abc import Sequence

from hermes_deploy.chat import ChatTokenizer, StopText
from hermes_deploy.runtime.stream import Delta
from hermes_deploy.serving.tensor_io import Piece


class Answer:
    """Turns each `Delta` of the token loop into the `Piece` that the caller gets."""

    def __init__(self, tokenizer: ChatTokenizer, prompt_tokens: int, stop_texts: Sequence[str]) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._stop = StopText(stop_texts)
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0

    def piece(self, delta: Delta) -> Piece:
        """The piece for `delta`. One with a finish_reason is the last: a stop text ends the answer early."""
        self._completion_tokens += len(delta.token_ids)
        finish: str = delta.finish or ""
        text, stopped = self._stop.push(self._detokenizer.push(delta.token_ids))
        if finish and not stopped:
            rest, stopped = self._stop.push(self._detokenizer.flush())
            text += rest + self._stop.flush()
        if stopped and finish != "error":
            finish = "stop"
        return Piece(
            text=text,
            token_ids=delta.token_ids,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            finish_reason=finish,
            error_code=delta.error.code if delta.error else "",
            error_message=str(delta.error) if delta.error else "",
        )
