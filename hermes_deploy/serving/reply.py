"""Sends the pieces of one request's answers to its caller, and knows whether anything was sent.

A failure before the first piece is an error of the request; after it, it travels in the piece and ends all n answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.stream import TokenStream, take_any
from hermes_deploy.serving.answer import Answer, in_one
from hermes_deploy.serving.request_log import Story
from hermes_deploy.serving.tensor_io import Piece, error_response, piece_response

CANCEL_POLL = 0.05
"""Seconds between looks at cancellation while no token comes. Each is a message to tritonserver and back."""
QUEUE_POLL = 0.5
"""The same while none of the answers has a slot: what is let go then costs nobody a step, and many may be waiting."""


class Reply:
    """To the caller behind `sender`; `story` is told of every piece.

    `interval`: seconds between two pieces, in which tokens are merged; the first and the last piece do not wait.
    """

    def __init__(self, pb_utils: Any, sender: Any, story: Story, interval: float = 0.0) -> None:
        self._triton = pb_utils
        self._sender = sender
        self._story = story
        self._interval = interval
        self._sent: Piece | None = None
        self._ended = False

    def send_pieces(self, streams: Sequence[TokenStream], answers: Sequence[Answer], *, whole: bool = False) -> None:
        """Until the last piece of the last answer. Raises RequestError for a failure before the first piece.

        `whole`: of a single answer, sent in one piece when it is complete.
        """
        kept: list[Piece] = []
        open_answers = list(zip(streams, answers, strict=True))
        next_piece = 0.0
        while open_answers:
            waiting = all(stream.admitted is None for stream in streams)
            poll = QUEUE_POLL if waiting else CANCEL_POLL
            taken = take_any([stream for stream, _ in open_answers], poll, not_before=next_piece)
            if self._sender.is_cancelled():
                for stream, _ in open_answers:
                    stream.cancel()
            if taken is None:
                continue
            # of several answers each gets its piece once in an interval
            next_piece = time.monotonic() + self._interval / len(open_answers)
            at, delta = taken
            if delta.error is not None and self._sent is None:
                raise delta.error
            stream, answer = open_answers.pop(at)
            piece = answer.piece(delta)
            if piece.finish_reason:
                stream.cancel("stop")  # a stop text that the loop does not know of
            else:
                # to the end: while this one has more, the others have their turn
                open_answers.append((stream, answer))
            if piece.finish_reason == "error":
                open_answers.clear()
            if whole:
                kept.append(piece)
                if open_answers:
                    continue
                piece = in_one(kept)
            self._send(piece, final=not open_answers)

    def fail(self, error: RequestError) -> None:
        final = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if self._sent is None:
            self._sender.send(error_response(self._triton, error), flags=final)
        elif not self._ended:
            last = self._sent
            self._send(
                Piece(
                    "",
                    (),
                    last.prompt_tokens,
                    last.completion_tokens,
                    finish_reason="error",
                    error_code=error.code,
                    error_message=str(error),
                    index=last.index,
                ),
                final=True,
            )

    def _send(self, piece: Piece, *, final: bool) -> None:
        end = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        # Triton 2.51 closes the sender before it looks for shared memory: a last piece that finds none could not
        # be told to the caller. So one that needs much of it goes before the end, which needs none.
        apart = bool(end and piece.prompt_logprobs)
        self._sender.send(piece_response(self._triton, piece), flags=0 if apart else end)
        self._sent, self._ended = piece, final
        if apart:
            self._sender.send(flags=end)
        self._story.piece(
            piece.index, piece.completion_tokens, piece.cached_tokens, piece.finish_reason, piece.error_code
        )
        if self._story.wants_content:
            self._story.text(piece.index, piece.text)
