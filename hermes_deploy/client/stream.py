"""One answer while it comes: an iterator of pieces that always lets go of its request.

Leaving the `with` block, an error, or `close()` before the end cancels the request on the server.
One thread reads; any thread may call `cancel()`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
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
from hermes_deploy.client.records import Answer, Piece, Timing, Usage
from hermes_deploy.client.wire import is_final, read_piece

_GOODBYE_S = 0.5
"""Seconds that a complete answer waits for the server to close its side: Triton logs an error at each
client that hangs up first."""


class Stream(Iterator[Piece]):
    """Made by `Client.stream`. `text` is what has come so far; `result()` reads to the end."""

    def __init__(self, start: Callable[[], Any], call: CallFacts, timeout_s: float | None) -> None:
        self.call = call
        self.text = ""
        self._timeout_s = timeout_s
        self._usage = Usage(0, 0)
        self._finish_reason = ""
        self._held_ids: tuple[int, ...] = ()
        self._answer: Answer | None = None
        self._failure: ClientError | None = None
        self._cancelled = False
        self._began = time.monotonic()
        self._first_piece_at: float | None = None
        self._final = False
        self._untold_ids: tuple[int, ...] = ()
        self._ended = threading.Event()
        self._responses = start()
        self._responses.add_done_callback(lambda _: self._ended.set())

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
        if self._finish_reason and self._answer is None:
            self._complete()
        self._cancelled = self._cancelled or self._answer is None
        if not (self._final and self._ended.wait(_GOODBYE_S)):
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
            if self._finish_reason:
                self._complete()  # every piece had come; what failed is only the goodbye
                return None
            raise self._translated(error) from error
        if message.error_message:
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
        self.text += received.text
        self._usage = received.usage
        finish: Any = received.finish_reason or None
        if received.error_code or received.error_message or finish == "error":
            self._failure = self._failed(received.error_code, received.error_message, in_band=True)
            finish = None
        elif finish == "cancelled":
            self._failure = self._failed("CANCELLED", "the server ended it")
            finish = None
        elif finish not in (None, "stop", "length"):
            raise ProtocolMismatch(
                f"the finish_reason {finish!r} is unknown to this client; use the client of the server's version",
                call=self.call,
                partial_text=self.text,
            )
        self._finish_reason = self._finish_reason or finish or ""
        ids = self._untold_ids + received.token_ids
        if not received.text and finish is None:
            self._untold_ids = ids  # half a character: its tokens belong to the piece that shows it
            return None
        self._untold_ids = ()
        return Piece(received.text, ids, finish, received.usage)

    def _end(self) -> None:
        if self._finish_reason:
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
            self.text,
            "stop" if self._finish_reason == "stop" else "length",
            self._usage,
            Timing(first - self._began, now - self._began),
            self.request_id,
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
