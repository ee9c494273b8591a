"""One answer while it comes: an iterator of pieces that always lets go of its request.

Leaving the `with` block, an error, or `close()` before the end cancels the request on the server.
One thread reads; any thread may call `cancel()`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import grpc

from hermes_deploy.client.errors import (
    AnswerCut,
    CallFacts,
    Cancelled,
    ClientError,
    ProtocolMismatch,
    error_for,
    retry_after,
)
from hermes_deploy.client.records import Answer, Choice, Piece, Timing, TokenLogprob, Usage
from hermes_deploy.client.wire import Received, is_final, read_piece

_GOODBYE_S = 0.5
"""Seconds that a complete answer, or an error, waits for the server to close its side. Where a client hangs up first,
Triton 2.51 logs an error, and may keep the request for ever, so that the model cannot be unloaded."""


@dataclass
class _Growing:
    """One of the answers while it comes. `untold`: what the reader has not been given yet."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    finish_reason: str = ""
    untold: Piece | None = None

    def add(self, received: Received) -> None:
        self.text += received.text
        self.token_ids += received.token_ids
        self.logprobs += received.logprobs
        self.usage = replace(received.usage, cached_tokens=self.usage.cached_tokens or received.usage.cached_tokens)

    def piece(self, received: Received, finish: Any) -> Piece | None:
        """What to show now; None while a character is unfinished: its tokens belong to the piece that shows it."""
        before = self.untold or Piece("", (), None, self.usage)
        piece = Piece(
            received.text,
            before.token_ids + received.token_ids,
            finish,
            self.usage,
            self.index,
            before.logprobs + received.logprobs,
            before.prompt_logprobs + received.prompt_logprobs,
        )
        self.untold = piece if not received.text and finish is None else None
        return None if self.untold else piece


class Stream(Iterator[Piece]):
    """Made by `Client.stream`. `text` is what has come so far of the first answer; `result()` reads to the end."""

    def __init__(
        self,
        start: Callable[[], Any],
        call: CallFacts,
        timeout_s: float | None,
        *,
        answers: int = 1,
        hold: Callable[[], Any] | None = None,
    ) -> None:
        """`hold`: starts a second call, which only stands for this side's being there; it goes first."""
        self.call = call
        self._timeout_s = timeout_s
        self._growing = [_Growing(index) for index in range(answers)]
        self._prompt_logprobs: tuple[TokenLogprob, ...] = ()
        self._answer: Answer | None = None
        self._failure: ClientError | None = None
        self._cancelled = False
        self._began = time.monotonic()
        self._first_piece_at: float | None = None
        self._final = False
        self._ended = threading.Event()
        self._hold = hold() if hold is not None else None
        self._responses = start()
        self._responses.add_done_callback(lambda _: self._ended.set())

    @property
    def text(self) -> str:
        return self._growing[0].text

    @property
    def request_id(self) -> str:
        return self.call.request_id

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the request if it still runs; safe to call twice."""
        if self._finished and self._answer is None:
            self._complete()
        self._cancelled = self._cancelled or self._answer is None
        if self._final:
            _see_off(self._responses, self._ended)
            if self._hold is not None:
                _see_off(self._hold)
            return
        if self._hold is not None:
            self._hold.cancel()
        self._responses.cancel()

    def cancel(self) -> None:
        """As `close`, from any thread: the reader gets Cancelled."""
        self.close()

    def result(self) -> Answer:
        """Reads what is left and returns the whole answer."""
        for _ in self:
            pass
        assert self._answer is not None  # the loop ends otherwise only by raising
        return self._answer

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        """The next piece that has text or ends the answer. Errors of the ClientError tree."""
        try:
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._answer is not None:
                    raise StopIteration
                piece = self._receive()
                if piece is not None:
                    return piece
        except StopIteration:
            raise
        except BaseException as error:
            # whatever stops the reader (our error, Ctrl-C) must also stop the server
            if isinstance(error, ClientError):
                self._failure = error
            self.close()
            raise

    def _receive(self) -> Piece | None:
        """One response of the server; None where there is nothing to show. Sets `_answer` at the end."""
        try:
            message = next(self._responses)
        except StopIteration:
            self._end()
            return None
        except grpc.RpcError as error:
            if self._finished:
                self._complete()  # every piece had come; what failed is only the goodbye
                return None
            raise self._translated(error) from error
        if message.error_message:
            self._final = True
            raise self._failed("", message.error_message)
        response = message.infer_response
        if response.id and response.id != self.request_id:
            raise ProtocolMismatch(
                f"{self.call.url} answered request {response.id!r} on the stream of {self.request_id!r}", call=self.call
            )
        piece = self._take(response) if response.outputs else None
        if self._failure is None and is_final(response):
            self._final = True
            self._end()
        return piece

    def _take(self, response: Any) -> Piece | None:
        received = read_piece(response, self.call)
        if self._first_piece_at is None:
            self._first_piece_at = time.monotonic()
        if not 0 <= received.index < len(self._growing):
            raise self._mismatch(f"a piece of answer {received.index} came, and {len(self._growing)} were asked for")
        answer = self._growing[received.index]
        answer.add(received)
        self._prompt_logprobs += received.prompt_logprobs
        finish: Any = received.finish_reason or None
        if received.error_code or received.error_message or finish == "error":
            self._failure = self._failed(received.error_code, received.error_message, in_band=True)
            finish = None
        elif finish == "cancelled":
            self._failure = self._failed("CANCELLED", "the server ended it")
            finish = None
        elif finish not in (None, "stop", "length"):
            raise self._mismatch(f"the finish_reason {finish!r} is unknown to this client")
        answer.finish_reason = answer.finish_reason or finish or ""
        return answer.piece(received, finish)

    @property
    def _finished(self) -> bool:
        return all(answer.finish_reason for answer in self._growing)

    @property
    def _usage(self) -> Usage:
        """Of all answers: their tokens, and what of the prompt none of them had to read."""
        usages = [answer.usage for answer in self._growing]
        return Usage(
            max(usage.prompt_tokens for usage in usages),
            sum(usage.completion_tokens for usage in usages),
            min(usage.cached_tokens for usage in usages),
        )

    def _end(self) -> None:
        if self._finished:
            self._complete()
        elif self._cancelled:
            raise self._failed("CANCELLED", "by this side")
        else:
            raise AnswerCut(
                f"the answer from {self.call.url} ended after {self._usage.completion_tokens} tokens without saying "
                "why: the server stopped in the middle of it. What came is in partial_text; ask again "
                f"(request {self.request_id})",
                call=self.call,
                code="DATA_LOSS",
                partial_text=self.text,
            )

    def _complete(self) -> None:
        now = time.monotonic()
        first = self._first_piece_at if self._first_piece_at is not None else now
        self._answer = Answer(
            tuple(
                Choice(
                    answer.index,
                    answer.text,
                    "stop" if answer.finish_reason == "stop" else "length",
                    tuple(answer.token_ids),
                    tuple(answer.logprobs),
                )
                for answer in self._growing
            ),
            self._usage,
            Timing(first - self._began, now - self._began),
            self.request_id,
            self._prompt_logprobs,
        )

    def _mismatch(self, what: str) -> ProtocolMismatch:
        return ProtocolMismatch(
            f"{what}; use the client of the server's version", call=self.call, partial_text=self.text
        )

    def _failed(self, code: str, details: str, *, in_band: bool = False) -> ClientError:
        return error_for(
            code,
            details,
            self.call,
            in_band=in_band,
            partial_text=self.text,
            timeout_s=self._timeout_s,
        )

    def _translated(self, error: grpc.RpcError) -> ClientError:
        if self._cancelled:
            return Cancelled(
                f"the request was cancelled by this side (request {self.request_id})",
                call=self.call,
                code="CANCELLED",
                partial_text=self.text,
            )
        return rpc_error(error, self.call, partial_text=self.text, timeout_s=self._timeout_s)


def _see_off(call: Any, ended: threading.Event | None = None) -> None:
    """Lets the server end `call`, of which nothing more is wanted; hangs up on one that does not."""
    if ended is not None and ended.is_set():
        return
    patience = threading.Timer(_GOODBYE_S, call.cancel)
    patience.daemon = True
    patience.start()
    try:
        for _ in call:
            pass
    except grpc.RpcError:
        pass  # it has ended, and how matters to nobody
    finally:
        patience.cancel()


def rpc_error(
    error: grpc.RpcError, call: CallFacts, *, partial_text: str = "", timeout_s: float | None = None
) -> ClientError:
    """The error of our tree for one of grpc's."""
    status: Any = error  # every RpcError that a call raises is also a grpc.Call
    return error_for(
        status.code().name,
        status.details() or "",
        call,
        partial_text=partial_text,
        retry_after_s=retry_after(status.trailing_metadata()),
        timeout_s=timeout_s,
    )
