"""Ids to released text: detokenizer, then stop text, and how the answer ended. One per answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from hermes_deploy.chat import ChatTokenizer, StopText
from hermes_deploy.runtime.stream import Delta, Generation
from hermes_deploy.serving.tensor_io import Piece


def in_one(pieces: Sequence[Piece]) -> Piece:
    """All pieces of one answer, as one."""
    first, last = pieces[0], pieces[-1]
    return replace(
        last,
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(chain.from_iterable(piece.token_ids for piece in pieces)),
        cached_tokens=first.cached_tokens,
        logprobs=tuple(chain.from_iterable(piece.logprobs for piece in pieces)),
        prompt_token_ids=first.prompt_token_ids,
        prompt_logprobs=first.prompt_logprobs,
    )


class Answer:
    """Turns each `Delta` of the token loop into the `Piece` that the caller gets.

    A stop text counts only in what comes after the first `min_tokens` tokens.
    """

    def __init__(self, tokenizer: ChatTokenizer, asked: Generation, stop_texts: Sequence[str]) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._stop = StopText(stop_texts)
        self._asked = asked
        self._completion_tokens = 0
        self._begun = False

    def piece(self, delta: Delta) -> Piece:
        """The piece for `delta`. One with a finish_reason is the last: a stop text ends the answer early."""
        finish: str = delta.finish or ""
        text, count, stopped = self._read(delta.token_ids)
        if finish and not stopped:
            rest, stopped = self._stop.push(self._detokenizer.flush())
            text += rest + self._stop.flush()
        if stopped and finish != "error":
            finish = "stop"
        first, self._begun = not self._begun, True
        return Piece(
            text=text,
            token_ids=delta.token_ids[:count],
            prompt_tokens=len(self._asked.prompt),
            completion_tokens=self._completion_tokens,
            finish_reason=finish,
            error_code=delta.error.code if delta.error else "",
            error_message=str(delta.error) if delta.error else "",
            index=self._asked.index,
            cached_tokens=delta.reused_tokens if first else 0,
            logprobs=delta.logprobs[:count],
            prompt_token_ids=tuple(self._asked.prompt.tolist()) if delta.prompt_logprobs else (),
            prompt_logprobs=delta.prompt_logprobs,
        )

    def _read(self, token_ids: tuple[int, ...]) -> tuple[str, int, bool]:
        """(text that may be shown of them, how many belong to the answer, whether a stop text ended it).

        Tokens behind the one that completes a stop text do not, however many came with it.
        """
        count = exempt = min(len(token_ids), max(0, self._asked.min_tokens - self._completion_tokens))
        text, stopped = self._detokenizer.push(token_ids[:exempt]) if exempt else "", False
        while count < len(token_ids) and not stopped:
            shown, stopped = self._stop.push(self._detokenizer.push(token_ids[count : count + 1]))
            text += shown
            count += 1
        self._completion_tokens += count
        return text, count, stopped
