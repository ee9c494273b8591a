"""What can go wrong with a call, as one tree. Knows gRPC status names, no sockets.

    ClientError                 (a HermesDeployError)
    ├── InvalidRequest          the request is wrong; sending it again will not help
    │   └── ContextTooLong      the prompt, or prompt + max_tokens, does not fit the model's context
    ├── ConnectionFailed        nothing answers at that address
    ├── ModelNotFound           a server answers, but does not serve this door
    ├── NotAllowed              the server wants other credentials
    ├── Overloaded              the queue is full; `retry_after_s` where the server says when to come back
    ├── Unavailable             the server is starting, draining, or went away
    ├── DeadlineExceeded        `timeout` passed
    ├── Cancelled               this side, or the server, ended the request
    ├── ServerFailed            the server broke while answering
    │   └── AnswerCut           the stream ended without saying that the answer is complete
    └── ProtocolMismatch        what answers is not a hermes-deploy server of a version that we understand

An error that comes before the first piece and one that comes after it (in-band) are the same class;
the second has the text that had come in `partial_text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hermes_deploy.errors import HermesDeployError
from hermes_deploy.protocol.failures import parse_failure


@dataclass(frozen=True)
class CallFacts:
    """Which call an error belongs to."""

    url: str = ""
    door: str = ""
    model: str = ""
    request_id: str = ""


class ClientError(HermesDeployError):
    """`code` is the gRPC status name, "" where the call was never made; `details` the server's own words."""

    exit_code = 9

    def __init__(
        self,
        message: str,
        *,
        call: CallFacts = CallFacts(),
        code: str = "",
        details: str = "",
        partial_text: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.url = call.url
        self.door = call.door
        self.model = call.model
        self.request_id = call.request_id
        self.code = code
        self.details = details
        self.partial_text = partial_text
        self.retry_after_s = retry_after_s


class InvalidRequest(ClientError):
    exit_code = 8


class ContextTooLong(InvalidRequest):
    pass


class ConnectionFailed(ClientError):
    pass


class ModelNotFound(ClientError):
    pass


class NotAllowed(ClientError):
    pass


class Overloaded(ClientError):
    pass


class Unavailable(ClientError):
    pass


class DeadlineExceeded(ClientError):
    pass


class Cancelled(ClientError):
    pass


class ServerFailed(ClientError):
    pass


class AnswerCut(ServerFailed):
    pass


class ProtocolMismatch(ClientError):
    pass


_NO_CONNECTION = re.compile(
    r"failed to connect|connection refused|DNS resolution|errors? resolving|lookup failed|name or service not known"
    r"|no route to host|network is unreachable|empty address list",
    re.IGNORECASE,
)
_HTTP1 = re.compile(r"http1\.x server|HTTP status code|missing selected ALPN|Failed parsing HTTP/2", re.IGNORECASE)
_HUNG_UP = re.compile(r"socket closed|before receiving SETTINGS|reset by peer|broken pipe|end of file", re.IGNORECASE)
_UNKNOWN_MODEL = re.compile(r"unknown model|no available versions|is not ready", re.IGNORECASE)
_RETRY = re.compile(r"\bRetry after (\d+(?:\.\d+)?) s\b")
"""Triton passes no metadata of ours: what our models know of it stands in their words."""
_TOO_LARGE = re.compile(r"message larger than max", re.IGNORECASE)


def error_for(
    code: str,
    details: str,
    call: CallFacts,
    *,
    in_band: bool = False,
    partial_text: str = "",
    retry_after_s: float | None = None,
    timeout_s: float | None = None,
) -> ClientError:
    """The error of one gRPC status name and the words that came with it.

    in_band: both came in the tensors of a piece, and are the model's own.
    """
    if not in_band and not _NO_CONNECTION.search(details):
        # Triton has fewer status codes than gRPC, so our models write theirs into the text
        code, details = parse_failure(details) or (code, details)
    hint = _RETRY.search(details)
    if retry_after_s is None and hint is not None:
        retry_after_s = float(hint[1])
    kind, message = _explain(code, details, call, timeout_s, retry_after_s)
    if call.request_id:
        message += f" (request {call.request_id}, {call.door} door at {call.url})"
    return kind(
        message,
        call=call,
        code=code or "UNKNOWN",
        details=details,
        partial_text=partial_text,
        retry_after_s=retry_after_s,
    )


def _explain(
    code: str, details: str, call: CallFacts, timeout_s: float | None, retry_after_s: float | None
) -> tuple[type[ClientError], str]:
    words = details.strip().rstrip(".") or "no reason given"
    if _TOO_LARGE.search(details):
        return InvalidRequest, f"the message is larger than the connection allows: {words}. Send a shorter prompt"
    if code in ("UNAVAILABLE", "INTERNAL", "UNIMPLEMENTED", "UNKNOWN") and _HTTP1.search(details):
        return ProtocolMismatch, (
            f"{call.url} does not speak gRPC (probably an HTTP port). Triton's gRPC port is 8001 unless set otherwise"
        )
    if code in ("", "UNKNOWN", "UNAVAILABLE", "NOT_FOUND", "INVALID_ARGUMENT") and _UNKNOWN_MODEL.search(details):
        return ModelNotFound, (
            f"the server at {call.url} does not serve the model {call.model!r} now: {words}. "
            "Check that it serves an artifact of `hermes-deploy build` and is ready: hermes-deploy serve DIR"
        )
    if code == "UNAVAILABLE" and _NO_CONNECTION.search(details) and _HUNG_UP.search(details):
        return ConnectionFailed, (
            f"something listens at {call.url}, but hangs up on gRPC: {words}. It is starting or stopping, or it is "
            "not a gRPC port (Triton's is usually 8001)"
        )
    if code == "UNAVAILABLE" and _NO_CONNECTION.search(details):
        return ConnectionFailed, (
            f"nothing answers at {call.url}: {words}. Start a server with `hermes-deploy serve DIR`, "
            "or give the address of one as HOST:PORT (the gRPC port, usually 8001)"
        )
    match code:
        case "INVALID_ARGUMENT":
            return InvalidRequest, words
        case "OUT_OF_RANGE":
            return ContextTooLong, words
        case "NOT_FOUND":
            return ModelNotFound, f"{words}. Check what {call.url} serves: hermes-deploy serve DIR"
        case "RESOURCE_EXHAUSTED":
            untold = retry_after_s is not None and not _RETRY.search(words)
            when = f". Ask again in {retry_after_s:g} s" if untold else ""
            return Overloaded, f"the server is full: {words}{when}"
        case "UNAVAILABLE":
            return Unavailable, f"the server cannot answer now (starting, draining or gone): {words}"
        case "DEADLINE_EXCEEDED":
            limit = f" of {timeout_s:g} s" if timeout_s is not None else ""
            return DeadlineExceeded, (
                f"the answer was not complete within the timeout{limit}. Raise timeout, or lower max_tokens"
            )
        case "CANCELLED":
            return Cancelled, f"the request was cancelled: {words}"
        case "UNAUTHENTICATED" | "PERMISSION_DENIED":
            return NotAllowed, f"the server refused these credentials: {words}"
        case "UNIMPLEMENTED":
            return ProtocolMismatch, (
                f"{call.url} answers gRPC but not Triton's inference protocol: {words}. Is it the right port?"
            )
        case _:
            return ServerFailed, f"the server failed: {words}. Its log says more"


def retry_after(metadata: Iterable[tuple[str, str | bytes]] | None) -> float | None:
    """Seconds of a `retry-after` (s) or `retry-after-ms` / `grpc-retry-pushback-ms` trailer, None without."""
    scales = {"retry-after": 1.0, "retry-after-ms": 1e-3, "grpc-retry-pushback-ms": 1e-3}
    for key, value in metadata or ():
        if key in scales and isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value) * scales[key]
    return None
