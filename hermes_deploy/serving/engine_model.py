"""What `hermes_engine` runs: both doors, one token loop, text and ids on every piece.

Requests are answered by a thread each, bounded by slots + queue; the loop refuses what is over.
The n answers to one prompt come on one response stream, which ends with the last of them; a stop
text ends only its own. A failure before the first piece is an error of the request; after it, it
travels in the piece. It ends all n: an answer that its caller cannot count on is none.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.errors import RequestError
from hermes_deploy.repository.engine_config import EngineConfig, read_engine_config
from hermes_deploy.repository.triton_parameters import MAX_CONTEXT, MAX_SLOTS, TARGET
from hermes_deploy.runtime.stream import TokenStream, take_any
from hermes_deploy.runtime.token_loop import TokenLoop
from hermes_deploy.serving.answer import Answer
from hermes_deploy.serving.chat_requests import Asked, read_request
from hermes_deploy.serving.control import ControlServer, loop_settings, open_control
from hermes_deploy.serving.metrics import TritonMetrics
from hermes_deploy.serving.sessions import open_session
from hermes_deploy.serving.tensor_io import Piece, error_response, piece_response

CANCEL_POLL = 0.05
"""Seconds between looks at cancellation while no token comes."""

LAST_WORDS = 2.0
"""Seconds between the death of the engine and that of its process, in which callers are told."""


class EngineModel:
    def __init__(
        self, pb_utils: Any, config: EngineConfig, tokenizer: ChatTokenizer, loop: TokenLoop, *, slots: int
    ) -> None:
        self._triton = pb_utils
        self._config = config
        self._stop_ids = frozenset(config.stop_ids)
        self._tokenizer = tokenizer
        self._loop = loop
        self._slots = slots
        self._metrics = TritonMetrics(pb_utils, loop.metrics)
        # one more than the loop takes: there is always a thread that can tell a caller to come back later
        self._threads = ThreadPoolExecutor(slots + loop.queue_limit + 1, thread_name_prefix="answer")
        self._control: ControlServer | None = None

    @classmethod
    def load(cls, args: dict[str, str], pb_utils: Any) -> EngineModel:
        """From Triton's `initialize` arguments. Raises HermesDeployError when the artifact cannot be run."""
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = {name: p["string_value"] for name, p in json.loads(args["model_config"])["parameters"].items()}
        slots, max_context = int(parameters[MAX_SLOTS]), int(parameters[MAX_CONTEXT])
        config = read_engine_config(folder)
        session = open_session(config, parameters[TARGET], folder, slots=slots, max_context=max_context)
        tokenizer = ChatTokenizer.from_folder(folder)
        # loading leaves holes in the heap: 21 MB beside a model of 135M
        ctypes.CDLL(None).malloc_trim(0)
        loop = TokenLoop(session, on_death=end_process, **loop_settings(parameters))
        model = cls(pb_utils, config, tokenizer, loop, slots=slots)
        model._control = open_control(parameters, loop)
        return model

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self._threads.submit(self._answer, request, request.get_response_sender())

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
        self._loop.close()
        self._threads.shutdown()
        self._metrics.close()

    def _answer(self, request: Any, sender: Any) -> None:
        reply = _Reply(self._triton, sender)
        try:
            asked, answers = self._read(request)
            streams = self._loop.submit_all(asked.generations)
            try:
                reply.send_pieces(streams, answers)
            finally:
                for stream in streams:
                    stream.cancel()
        except RequestError as error:
            reply.fail(error)
        except Exception as error:  # this thread is all that answers the caller, who would wait forever
            traceback.print_exc()
            reply.fail(_internal(error))

    def _read(self, request: Any) -> tuple[Asked, list[Answer]]:
        try:
            asked = read_request(
                self._triton, request, self._tokenizer, self._config.sampling, self._stop_ids, self._slots
            )
            return asked, [Answer(self._tokenizer, one, asked.stop_texts) for one in asked.generations]
        except RequestError as error:
            self._loop.count_refusal(error)
            raise


def end_process(cause: str) -> None:
    """Ends this process, loudly, once those who wait were told: a model that serves nothing must not look alive.

    The guard sees it and ends the server, which is then started again by whoever watches it.
    """
    print(f"hermes_engine: the engine died: {cause}. This process ends now.", file=sys.stderr, flush=True)
    end = threading.Timer(LAST_WORDS, os._exit, [70])
    end.daemon = True
    end.start()


class _Reply:
    """Sends to one caller, and knows whether anything was sent."""

    def __init__(self, pb_utils: Any, sender: Any) -> None:
        self._triton = pb_utils
        self._sender = sender
        self._sent: Piece | None = None
        self._ended = False

    def send_pieces(self, streams: Sequence[TokenStream], answers: Sequence[Answer]) -> None:
        """Until the last piece of the last answer. Raises RequestError for a failure before the first piece."""
        open_answers = list(zip(streams, answers, strict=True))
        while open_answers:
            taken = take_any([stream for stream, _ in open_answers], CANCEL_POLL)
            if self._sender.is_cancelled():
                for stream, _ in open_answers:
                    stream.cancel()
            if taken is None:
                continue
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
        flags = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        self._sender.send(piece_response(self._triton, piece), flags=flags)
        self._sent, self._ended = piece, final


def _internal(error: Exception) -> RequestError:
    return RequestError(f"{type(error).__name__}: {error}. This is a fault of the server; see its log.", "INTERNAL")
