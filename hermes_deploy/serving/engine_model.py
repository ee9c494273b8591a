"""What `hermes_engine` runs: both doors, one token loop, text and ids on every piece.

Requests are answered by a thread each, bounded by slots + queue; the loop refuses what is over.
A failure before the first piece is an error of the request; after it, it travels in the piece.
"""

from __future__ import annotations

import json
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.errors import RequestError
from hermes_deploy.repository.engine_config import EngineConfig, read_engine_config
from hermes_deploy.repository.triton_parameters import MAX_CONTEXT, MAX_SLOTS, TARGET
from hermes_deploy.runtime.stream import TokenStream
from hermes_deploy.runtime.token_loop import TokenLoop
from hermes_deploy.serving.answer import Answer
from hermes_deploy.serving.chat_requests import read_request
from hermes_deploy.serving.sessions import open_session
from hermes_deploy.serving.tensor_io import Piece, error_response, piece_response

QUEUE_LIMIT = 64
"""Requests that wait for a slot before the next one is refused."""

CANCEL_POLL = 0.05
"""Seconds between looks at cancellation while no token comes."""


class EngineModel:
    def __init__(
        self, pb_utils: Any, config: EngineConfig, tokenizer: ChatTokenizer, loop: TokenLoop, *, slots: int
    ) -> None:
        self._triton = pb_utils
        self._config = config
        self._stop_ids = frozenset(config.stop_ids)
        self._tokenizer = tokenizer
        self._loop = loop
        # one more than the loop takes: there is always a thread that can tell a caller to come back later
        self._threads = ThreadPoolExecutor(slots + QUEUE_LIMIT + 1, thread_name_prefix="answer")

    @classmethod
    def load(cls, args: dict[str, str], pb_utils: Any) -> EngineModel:
        """From Triton's `initialize` arguments. Raises HermesDeployError when the artifact cannot be run."""
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = {name: p["string_value"] for name, p in json.loads(args["model_config"])["parameters"].items()}
        slots, max_context = int(parameters[MAX_SLOTS]), int(parameters[MAX_CONTEXT])
        config = read_engine_config(folder)
        session = open_session(config, parameters[TARGET], folder, slots=slots, max_context=max_context)
        tokenizer = ChatTokenizer.from_folder(folder)
        loop = TokenLoop(session, queue_limit=QUEUE_LIMIT)
        return cls(pb_utils, config, tokenizer, loop, slots=slots)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self._threads.submit(self._answer, request, request.get_response_sender())

    def close(self) -> None:
        self._loop.close()
        self._threads.shutdown()

    def _answer(self, request: Any, sender: Any) -> None:
        reply = _Reply(self._triton, sender)
        try:
            asked = read_request(self._triton, request, self._tokenizer, self._config.sampling, self._stop_ids)
            answer = Answer(self._tokenizer, len(asked.generation.prompt), asked.stop_texts)
            stream = self._loop.submit(asked.generation)
            try:
                reply.send_pieces(stream, answer)
            finally:
                stream.cancel()
        except RequestError as error:
            reply.fail(error)
        except Exception as error:  # this thread is all that answers the caller, who would wait forever
            traceback.print_exc()
            reply.fail(_internal(error))


class _Reply:
    """Sends to one caller, and knows whether anything was sent."""

    def __init__(self, pb_utils: Any, sender: Any) -> None:
        self._triton = pb_utils
        self._sender = sender
        self._sent: Piece | None = None

    def send_pieces(self, stream: TokenStream, answer: Answer) -> None:
        """Until the last piece. Raises RequestError for a failure before the first."""
        while True:
            delta = stream.take(CANCEL_POLL)
            if self._sender.is_cancelled():
                stream.cancel()
            if delta is None:
                continue
            if delta.error is not None and self._sent is None:
                raise delta.error
            piece = answer.piece(delta)
            self._send(piece)
            if piece.finish_reason:
                return

    def fail(self, error: RequestError) -> None:
        final = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if self._sent is None:
            self._sender.send(error_response(self._triton, error), flags=final)
        elif not self._sent.finish_reason:
            failed = replace(self._sent, text="", token_ids=(), finish_reason="error")
            self._send(replace(failed, error_code=error.code, error_message=str(error)))

    def _send(self, piece: Piece) -> None:
        last = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if piece.finish_reason else 0
        self._sender.send(piece_response(self._triton, piece), flags=last)
        self._sent = piece


def _internal(error: Exception) -> RequestError:
    return RequestError(f"{type(error).__name__}: {error}. This is a fault of the server; see its log.", "INTERNAL")
