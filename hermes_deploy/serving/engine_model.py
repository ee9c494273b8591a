"""What `hermes_engine` runs: both doors, one token loop, text and ids on every piece.

Requests are answered by a thread each, bounded by slots + queue; the loop refuses what is over.
The n answers to one prompt come on one response stream, which ends with the last of them; a stop
text ends only its own. How failures reach the caller is reply.py's, how a caller that Triton hides can
end its request leases.py's.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hermes_deploy.chat import ChatTokenizer, Room
from hermes_deploy.errors import RequestError
from hermes_deploy.protocol.tensors import MESSAGES, PROMPT
from hermes_deploy.repository.engine_config import EngineConfig, read_engine_config
from hermes_deploy.repository.triton_parameters import (
    LOG_CONTENT,
    MAX_CONTEXT,
    MAX_SLOTS,
    OWN_KERNELS,
    PIECE_INTERVAL,
    REQUEST_LOG,
    TARGET,
)
from hermes_deploy.runtime.stream import TokenStream
from hermes_deploy.runtime.token_loop import TokenLoop
from hermes_deploy.serving.answer import Answer
from hermes_deploy.serving.chat_requests import Asked, read_request
from hermes_deploy.serving.control import ControlServer, loop_settings, open_control
from hermes_deploy.serving.faults import told_to_caller
from hermes_deploy.serving.lease_requests import is_key_call, read_key_call, read_lease
from hermes_deploy.serving.leases import Lease, Leases
from hermes_deploy.serving.metrics import TritonMetrics
from hermes_deploy.serving.reply import Reply
from hermes_deploy.serving.request_log import RequestLog, Story
from hermes_deploy.serving.sessions import open_session
from hermes_deploy.serving.tensor_io import Piece, error_response, piece_response

_KEYS_A_REQUEST = 16
"""Keys that may be known for each request that may run or wait: those let go are known for a while."""

LAST_WORDS = 2.0
"""Seconds between the death of the engine and that of its process, in which callers are told."""


class EngineModel:
    def __init__(
        self,
        pb_utils: Any,
        config: EngineConfig,
        tokenizer: ChatTokenizer,
        loop: TokenLoop,
        *,
        slots: int,
        piece_interval: float = 0.0,
        log: RequestLog | None = None,
    ) -> None:
        self._triton = pb_utils
        self._config = config
        self._stop_ids = frozenset(config.stop_ids)
        self._tokenizer = tokenizer
        self._loop = loop
        self._slots = slots
        self._piece_interval = piece_interval
        self._room = Room(loop.max_context, tokenizer.longest_token)
        self._metrics = TritonMetrics(pb_utils, loop.metrics)
        # one more than the loop takes: there is always a thread that can tell a caller to come back later
        self._threads = ThreadPoolExecutor(slots + loop.queue_limit + 1, thread_name_prefix="answer")
        # of its own: a renewal does not wait behind those who ask for answers
        self._key_calls = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._control: ControlServer | None = None
        self._log = log or RequestLog(None)
        self._leases = Leases(pb_utils, _KEYS_A_REQUEST * (slots + loop.queue_limit))

    @classmethod
    def load(cls, args: dict[str, str], pb_utils: Any) -> EngineModel:
        """From Triton's `initialize` arguments. Raises HermesDeployError when the artifact cannot be run."""
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = {name: p["string_value"] for name, p in json.loads(args["model_config"])["parameters"].items()}
        slots, max_context = int(parameters[MAX_SLOTS]), int(parameters[MAX_CONTEXT])
        config = read_engine_config(folder)
        session = open_session(
            config,
            parameters[TARGET],
            folder,
            slots=slots,
            max_context=max_context,
            own_kernels=parameters.get(OWN_KERNELS) != "false",
        )
        tokenizer = ChatTokenizer.from_folder(folder)
        # loading leaves holes in the heap: 21 MB beside a model of 135M
        ctypes.CDLL(None).malloc_trim(0)
        loop = TokenLoop(session, on_death=end_process, **loop_settings(parameters))
        log = RequestLog(parameters.get(REQUEST_LOG), content=LOG_CONTENT in parameters)
        interval = float(parameters.get(PIECE_INTERVAL, 0))
        model = cls(pb_utils, config, tokenizer, loop, slots=slots, piece_interval=interval, log=log)
        model._control = open_control(parameters, loop)
        return model

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            if is_key_call(self._triton, request):
                self._key_calls.submit(self._obey, request, sender)
            else:
                self._threads.submit(self._begin, request, sender, time.monotonic())

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
        self._loop.close()
        self._threads.shutdown()
        self._key_calls.shutdown()
        self._leases.close()
        self._log.close()
        self._metrics.close()

    def _begin(self, request: Any, sender: Any, arrived: float) -> None:
        self._answer(request, sender, self._log.story(request.request_id(), self._door(request), arrived))

    def _obey(self, request: Any, sender: Any) -> None:
        final = self._triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        try:
            call = read_key_call(self._triton, request)
            match call.do:
                case "hold":
                    self._leases.hold(call.keys[0], sender)
                case "renew":
                    self._leases.renew(call.keys)
                    sender.send(flags=final)
                case "cancel":
                    self._leases.cancel(call.keys[0])
                    done = Piece("", (), 0, 0, finish_reason="cancelled")
                    sender.send(piece_response(self._triton, done), flags=final)
        except Exception as error:  # this thread is all that answers the caller, who would wait forever
            sender.send(error_response(self._triton, told_to_caller(error)), flags=final)

    def _door(self, request: Any) -> str:
        """How the prompt came, for the log; "ids" is the ensemble too."""
        for form, door in ((MESSAGES, "chat"), (PROMPT, "prompt")):
            if self._triton.get_input_tensor_by_name(request, form.name) is not None:
                return door
        return "ids"

    def _answer(self, request: Any, sender: Any, story: Story) -> None:
        reply = Reply(self._triton, sender, story, self._piece_interval)
        streams: list[TokenStream] = []
        code = ""
        try:
            with self._leases.taken(self._lease(request), lambda why: _cancel(streams, why)) as let_go:
                asked, answers = self._read(request)
                first = asked.generations[0]
                story.asked(first.client, len(first.prompt))
                streams += self._loop.submit_all(asked.generations)
                if story.wants_content:
                    story.prompt(self._tokenizer.decode(first.prompt.tolist()))
                if let_go():  # before there were streams to cancel
                    _cancel(streams)
                reply.send_pieces(streams, answers, whole=asked.in_one)
        except Exception as error:  # this thread is all that answers the caller, who would wait forever
            told = told_to_caller(error)
            code = told.code
            reply.fail(told)
        finally:
            _cancel(streams)
            if streams:
                story.finished([s.admitted for s in streams], [s.first_token for s in streams], code)
            else:
                story.refused(code)

    def _lease(self, request: Any) -> Lease | None:
        with self._refusals_counted():
            return read_lease(self._triton, request)

    def _read(self, request: Any) -> tuple[Asked, list[Answer]]:
        with self._refusals_counted():
            self._loop.check_room()
            asked = read_request(
                self._triton, request, self._tokenizer, self._config.sampling, self._stop_ids, self._slots, self._room
            )
            return asked, [Answer(self._tokenizer, one, asked.stop_texts) for one in asked.generations]

    @contextmanager
    def _refusals_counted(self) -> Iterator[None]:
        try:
            yield
        except RequestError as error:
            self._loop.count_refusal(error)
            raise
        except Exception:
            self._loop.count_refusal(RequestError("a fault of our own", "INTERNAL"))
            raise


def end_process(cause: str) -> None:
    """Ends this process, loudly, once those who wait were told: a model that serves nothing must not look alive.

    The guard sees it and ends the server, which is then started again by whoever watches it.
    """
    print(f"hermes_engine: the engine died: {cause}. This process ends now.", file=sys.stderr, flush=True)
    end = threading.Timer(LAST_WORDS, os._exit, [70])
    end.daemon = True
    end.start()


def _cancel(streams: list[TokenStream], why: str = "") -> None:
    """`why`: what a caller is told who did not ask for it."""
    for stream in streams:
        if why:
            stream.end("cancelled", RequestError(why, "CANCELLED"))
        stream.cancel()
