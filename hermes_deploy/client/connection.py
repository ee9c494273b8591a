"""`Client`: one connection to a served model. Threads may share it; every call is a stream of its own."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Unpack

import grpc

from hermes_deploy.client.errors import CallFacts, ClientError, DeadlineExceeded, InvalidRequest, error_for
from hermes_deploy.client.records import (
    MODEL_OF_DOOR,
    Answer,
    Door,
    Prompt,
    check_door,
    checked_prompt,
)
from hermes_deploy.client.renewals import Renewals
from hermes_deploy.client.sampling import Sampling, SamplingOptions, check_text, check_timeout
from hermes_deploy.client.stream import Stream, rpc_error
from hermes_deploy.client.wire import LEASE_MS, chat_request, hold_request, renew_request
from hermes_deploy.protocol import methods, tensors

MAX_MESSAGE_BYTES = 16 * 2**20
RENEWAL_SECONDS = 5.0
"""Between two renewals of leases: a dozen of them may be lost."""

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Triton refuses clients that ping more often than every five minutes
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # a client that outlives a restart of its server finds the new one within two seconds
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # which is the time that one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
# no metadata triton_grpc_error, which would bring real status codes: Triton 2.51 dies of requests that fail on streams
# with it (SIGSEGV, within 20 failures)


@dataclass(frozen=True)
class Health:
    """`models` says of each door's model whether it is loaded; `ready` is the server's own word for all."""

    live: bool
    ready: bool
    models: dict[str, bool]
    server: str


class Client:
    """A connection to Triton's gRPC port.

    with Client("localhost:8001") as client:
        print(client.ask("What is the capital of France?").text)

    url: HOST:PORT (the gRPC port). credentials: from `grpc.ssl_channel_credentials`, None for plain text.
    Nothing is opened until the first call. Every error is a `hermes_deploy.client.ClientError`.
    """

    def __init__(self, url: str = "localhost:8001", *, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.url = _checked_url(url)
        self._closed = False
        self._channel = (
            grpc.insecure_channel(url, _OPTIONS)
            if credentials is None
            else grpc.secure_channel(url, credentials, _OPTIONS)
        )
        self._renewals = Renewals(self._renew, min(RENEWAL_SECONDS, LEASE_MS / 3e3))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every stream of this client and the connection."""
        self._closed = True
        self._renewals.close()
        self._channel.close()

    def stream(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        door: Door = "chat",
        timeout: float | None = None,
        request_id: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Start an answer; read it piece by piece, inside a `with` block.

        prompt: a text, or messages (`Message`, or mappings with role and content), or a `RawPrompt`, which is sent
        as it is, without the model's chat template. timeout: seconds for the whole answer. door: "chat" is the
        engine's own door; "ensemble" goes through Triton's pipeline, which hides from the engine that a caller has
        gone: a second request, to the engine itself, holds the first, and Triton does tell of its end. The rest,
        from max_tokens to n: see `Sampling`. With n > 1 the pieces of all answers come mixed, each with its `index`.

        A thread of the Client tells the server that this process is still there while anything streams, be it read or
        not; a process that cannot for 60 s (stopped, off the network) loses its answers, with Cancelled.
        """
        asked = checked_prompt(prompt, system)
        chosen = Sampling(**sampling)  # type: ignore[arg-type]  # lists and mappings are made tuples
        call = self._facts(check_door(door), request_id)
        timeout_s = check_timeout(timeout)
        # 128 random bits: whoever knows the key can end the request, and nobody else is told it
        key = secrets.token_hex(16)
        request = chat_request(call.model, call.request_id, asked, chosen, timeout_s, key)
        if request.ByteSize() > MAX_MESSAGE_BYTES:
            raise InvalidRequest(
                f"the request has {request.ByteSize():,} bytes; at most {MAX_MESSAGE_BYTES:,} can be sent", call=call
            )
        self._check_open()

        def start() -> Any:
            self._renewals.add(key)
            responses = self._open(request, timeout_s)
            responses.add_done_callback(lambda _: self._renewals.drop(key))  # however it ends
            return responses

        # a stream of its own: Triton 2.51 keeps what it should let go where a stream with two requests ends early
        def hold() -> Any:
            return self._open(hold_request(f"{call.request_id}-hold", key))

        return Stream(
            start, call, timeout_s, answers=chosen.n or 1, hold=hold if call.model == tensors.ENSEMBLE else None
        )

    def ask(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        door: Door = "chat",
        timeout: float | None = None,
        request_id: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Answer:
        """The whole answer at once; arguments as for `stream`."""
        with self.stream(
            prompt, system=system, door=door, timeout=timeout, request_id=request_id, **sampling
        ) as stream:
            return stream.result()

    def health(self, *, timeout: float = 5.0) -> Health:
        """What the server says of itself; it says so even with a dead model process. Only an answer proves more."""
        live = bool(self._call(methods.SERVER_LIVE, timeout).live)
        ready = bool(self._call(methods.SERVER_READY, timeout).ready)
        about = self._call(methods.SERVER_METADATA, timeout)
        models = {
            model: bool(self._call(methods.MODEL_READY, timeout, name=model).ready) for model in MODEL_OF_DOOR.values()
        }
        return Health(live, ready, models, f"{about.name} {about.version}")

    def ready(self, door: Door = "chat", *, timeout: float = 5.0) -> bool:
        """Does a server answer, and has it loaded this door's model? False also when nothing answers."""
        model = MODEL_OF_DOOR[check_door(door)]
        try:
            return bool(self._call(methods.MODEL_READY, timeout, name=model).ready)
        except InvalidRequest:
            raise
        except ClientError:
            return False

    def wait_until_ready(self, door: Door = "chat", *, timeout: float = 60.0) -> None:
        """Returns as soon as `ready(door)`; DeadlineExceeded after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not self.ready(door, timeout=max(0.1, min(1.0, end - time.monotonic()))):
            if time.monotonic() > end:
                raise DeadlineExceeded(
                    f"{self.url} was not ready within {timeout:g} s. Look at the log of `hermes-deploy serve`",
                    call=self._facts(door, None),
                    code="DEADLINE_EXCEEDED",
                )
            time.sleep(0.05)

    def _open(self, request: Any, timeout_s: float | None = None) -> Any:
        method = methods.STREAM_INFER
        stream = self._channel.stream_stream(method.path, method.serialize_request, method.parse_response)
        return stream(iter((request,)), timeout=timeout_s)

    def _renew(self, keys: Sequence[str], timeout_s: float) -> None:
        # one that fails says what the streams will be told themselves; ValueError: this Client was closed meanwhile
        with suppress(grpc.RpcError, ValueError):
            for answer in self._open(renew_request(f"renew-{uuid.uuid4().hex}", keys), timeout_s):
                if answer.error_message:  # only a server of another version says no
                    raise error_for("", answer.error_message, CallFacts(self.url, model=tensors.ENGINE))

    def _call(self, method: methods.Method, timeout: float, **fields: Any) -> Any:
        self._check_open()
        invoke = self._channel.unary_unary(method.path, method.serialize_request, method.parse_response)
        try:
            return invoke(method.request(**fields), timeout=check_timeout(timeout))
        except grpc.RpcError as error:
            facts = CallFacts(self.url, model=str(fields.get("name", "")))
            raise rpc_error(error, facts, timeout_s=timeout) from error

    def _facts(self, door: str, request_id: str | None) -> CallFacts:
        if request_id is not None:
            check_text("the request id", request_id)
        return CallFacts(self.url, door, MODEL_OF_DOOR[door], request_id or uuid.uuid4().hex)

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("this Client is closed; make a new one", call=CallFacts(self.url))


def _checked_url(url: str) -> str:
    check_text("the address", url)
    if "://" in url:
        raise InvalidRequest(f"the address is {url!r}; give it as HOST:PORT, without {url.split('://')[0]}://")
    if url.startswith("unix:"):
        return url
    host, colon, port = url.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidRequest(f"the address is {url!r}; give it as HOST:PORT with the gRPC port, usually 8001")
    return url
