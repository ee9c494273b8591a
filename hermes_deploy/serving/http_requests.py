"""Bytes of an HTTP connection -> one whole, bounded request, and the bytes with which it is passed on. No sockets.

    head within MAX_HEAD -> body within `body_bytes`, whatever its form -> JSON within SHAPE -> Request

What is passed on has one Content-Length and no other framing, so that Triton 2.51 never sees what it cannot take:
bodies in a million chunks and JSON of a hundred thousand levels end it (SIGSEGV, with every caller's stream).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import h11

from hermes_deploy.chat.json_shape import Shape, check_shape
from hermes_deploy.errors import RequestError
from hermes_deploy.protocol.failures import failure_text

MAX_HEAD = 16 << 10
"""Bytes."""
MAX_HEADERS = 100
MAX_CHUNKS = 16_384
SHAPE = Shape(strings=16_384, containers=4096, depth=64)
"""Of a body's JSON. A chat is one string in it."""
METHODS = (b"GET", b"POST")
"""All that Triton's protocol has."""

_INFER = re.compile(rb"/v2/models/[\w.-]+(/versions/\d+)?/infer")
_JSON_LENGTH = b"inference-header-content-length"
_OURS = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"content-encoding", b"expect"}
    | {b"upgrade", b"te", b"trailer", b"proxy-connection"}
)
"""Headers that are about one connection, and are not passed on."""
_WORDS = {400: "Bad Request", 405: "Method Not Allowed", 408: "Request Timeout", 413: "Content Too Large"}
_WORDS |= {415: "Unsupported Media Type", 431: "Request Header Fields Too Large", 502: "Bad Gateway"}
_WORDS |= {503: "Service Unavailable"}


class Refused(Exception):
    """`status`: of HTTP; `code`: gRPC's name of it, with which the error's words begin, as Triton's do."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def response(self) -> bytes:
        """A whole response that ends the connection."""
        body = json.dumps({"error": failure_text(self.code, str(self))}).encode()
        head = f"HTTP/1.1 {self.status} {_WORDS[self.status]}\r\nContent-Type: application/json\r\n"
        later = "Retry-After: 5\r\n" if self.status == 503 else ""
        return f"{head}Content-Length: {len(body)}\r\n{later}Connection: close\r\n\r\n".encode() + body


@dataclass(frozen=True)
class Request:
    """`head` and `body`: to be passed on. `rest`: bytes that came after it. `keep_alive`: the caller wants to go on."""

    head: bytes
    body: bytearray
    rest: bytes
    keep_alive: bool


class RequestReader:
    """For one request. `body_bytes`: of the longest body; 0 for a port that takes none."""

    def __init__(self, body_bytes: int) -> None:
        self._most = body_bytes
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._asked: h11.Request | None = None
        self._chunks = 0
        self.body = bytearray()

    def feed(self, data: bytes) -> Request | None:
        """None while more is needed. Raises Refused."""
        try:
            self._h11.receive_data(data)
            while True:
                event = self._h11.next_event()
                if isinstance(event, h11.Request):
                    self._asked = event
                    self._check_head(event)
                elif isinstance(event, h11.Data):
                    self._add(event)
                elif isinstance(event, h11.EndOfMessage):
                    return self._whole()
                else:
                    return None
        except h11.RemoteProtocolError as error:
            status = 431 if error.error_status_hint == 431 else 400
            message = f"not a request of HTTP/1.1: {error}" if status == 400 else f"the head has over {MAX_HEAD} bytes"
            raise Refused(status, "INVALID_ARGUMENT", message) from None

    def wants_continue(self) -> bool:
        """Whether the caller waits to be told that its body is wanted."""
        return self._h11.they_are_waiting_for_100_continue

    def _check_head(self, asked: h11.Request) -> None:
        if asked.method not in METHODS or not asked.target.startswith(b"/"):
            raise Refused(405, "UNIMPLEMENTED", "this server takes GET and POST of a path, nothing else")
        if len(asked.headers) > MAX_HEADERS:
            message = f"the request has {len(asked.headers)} headers; at most {MAX_HEADERS} are taken"
            raise Refused(431, "INVALID_ARGUMENT", message)
        for name, value in asked.headers:
            if name == b"content-encoding" and value.lower() != b"identity":
                raise Refused(415, "UNIMPLEMENTED", "the body is compressed; send it as it is")
            if name == b"content-length":
                self._check_size(int(value))

    def _check_size(self, size: int) -> None:
        if size > self._most:
            allowed = f"at most {self._most} are taken (setting max_request_bytes)" if self._most else "none are taken"
            raise Refused(413, "OUT_OF_RANGE", f"the body has {size} bytes or more; {allowed}")

    def _add(self, data: h11.Data) -> None:
        self._chunks += data.chunk_start
        if self._chunks > MAX_CHUNKS:
            raise Refused(413, "INVALID_ARGUMENT", f"the body has more than {MAX_CHUNKS} chunks; send larger ones")
        self._check_size(len(self.body) + len(data.data))
        self.body += data.data

    def _whole(self) -> Request:
        asked = self._asked
        assert asked is not None, "h11 gives the head first"
        try:
            check_shape(bytes(memoryview(self.body)[: self._json_length(asked)]), SHAPE, "the body")
        except RequestError as error:
            raise Refused(400, error.code, str(error)) from None
        passed = [(name, value) for name, value in asked.headers if name not in _OURS]
        passed += [(b"connection", b"close"), (b"content-length", str(len(self.body)).encode())]
        first = asked.method + b" " + asked.target + b" HTTP/" + asked.http_version
        lines = [first, *(name + b": " + value for name, value in passed)]
        closes = b"close" in b",".join(value.lower() for name, value in asked.headers if name == b"connection")
        keep_alive = asked.http_version >= b"1.1" and not closes
        return Request(b"\r\n".join(lines) + b"\r\n\r\n", self.body, self._h11.trailing_data[0], keep_alive)

    def _json_length(self, asked: h11.Request) -> int:
        """Bytes of the body that Triton reads as JSON: all, but for infer with binary tensors behind it."""
        given = [value for name, value in asked.headers if name == _JSON_LENGTH]
        if not given or not _INFER.fullmatch(asked.target):
            return len(self.body)
        if len(given) > 1 or not given[0].isdigit() or int(given[0]) > len(self.body):
            raise RequestError("inference-header-content-length is not the length of a part of the body")
        return int(given[0])
