"""The ports on which health is asked: HTTP /livez, /readyz and /healthz, and grpc.health.v1.

They belong to `serve`, not to Triton, so they answer whatever has become of Triton. 200 and SERVING mean yes, 503
and NOT_SERVING no; HTTP gives the reasons as JSON. gRPC services: "" and "ready" are readiness, "live" liveness.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import grpc

from hermes_deploy.protocol.health_v1 import (
    NOT_SERVING,
    SERVICE,
    SERVICE_UNKNOWN,
    SERVING,
    HealthCheckRequest,
    HealthCheckResponse,
)
from hermes_deploy.serving.health import Health, Verdict
from hermes_deploy.serving.ports import claim_ports

_PATIENCE = 3.0
"""Seconds that an HTTP caller has for its request."""
_CALLERS = 32
"""HTTP connections at once; for one more the oldest is closed, so that a probe always gets in."""
_CALLS = 8
"""gRPC calls at once; more are refused."""
_WATCHERS = 4
"""Of these, calls that watch: they stay, and leave room for those that check."""
_LOOK_AGAIN = 1.0
"""Seconds between looks for a watcher while nothing changes: a heartbeat can be missed."""


class HealthPorts:
    """Listens from the start until `close`. Raises ServeError or UsageError for ports that cannot be had."""

    def __init__(self, health: Health, host: str, http_port: int, grpc_port: int) -> None:
        chosen = claim_ports(host, {"health": http_port, "health-grpc": grpc_port})
        self.http_port, self.grpc_port = chosen["health"], chosen["health-grpc"]
        self._closed = threading.Event()
        self._http = _HTTPServer((host, self.http_port), _handler(health))
        self._grpc = _grpc_server(health, self._closed)
        self._grpc.add_insecure_port(f"{host}:{self.grpc_port}")
        self._grpc.start()
        threading.Thread(target=self._http.serve_forever, name="health", daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._grpc.stop(grace=None)
        self._http.shutdown()
        self._http.server_close()


class _HTTPServer(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    request_queue_size = 1024  # those that the system drops try again only after seconds

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: dict[socket.socket, float] = {}
        """Until when each may stay, in the order in which they came."""
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            # the handler's timeout is one of each read: a caller that sends a byte at a time would stay for ever
            self._open[request] = time.monotonic() + 2 * _PATIENCE
            if len(self._open) > _CALLERS:
                self._hang_up_on_oldest()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        now = time.monotonic()
        with self._lock:
            while self._open and next(iter(self._open.values())) < now:
                self._hang_up_on_oldest()

    def _hang_up_on_oldest(self) -> None:
        oldest = next(iter(self._open))
        del self._open[oldest]
        with contextlib.suppress(OSError):  # it has gone
            oldest.shutdown(socket.SHUT_RDWR)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hung up in the middle: its own affair."""


def _handler(health: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE
        server_version, sys_version = "hermes-deploy", ""

        def do_GET(self) -> None:
            verdict = health.verdict()
            asked = {"/livez": verdict.alive, "/readyz": verdict.ready, "/healthz": verdict.alive and verdict.ready}
            path = self.path.partition("?")[0]
            if path not in asked:
                self._reply(404, {"error": f"no such path; there are {', '.join(asked)}"})
                return
            whole = path == "/healthz"
            document = health.document() if whole else {"ok": asked[path], "reasons": list(verdict.reasons)}
            self._reply(200 if asked[path] else 503, document)

        def _reply(self, status: int, document: dict[str, Any]) -> None:
            body = json.dumps(document, ensure_ascii=False).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: Any) -> None:
            """Probes come every few seconds: not worth a line."""

    return Handler


_SERVICES: dict[str, Callable[[Verdict], bool]] = {
    "": lambda verdict: verdict.ready,
    "ready": lambda verdict: verdict.ready,
    "live": lambda verdict: verdict.alive,
}


def _grpc_server(health: Health, closed: threading.Event) -> grpc.Server:
    def status(service: str) -> int:
        if service not in _SERVICES:
            return SERVICE_UNKNOWN
        return SERVING if _SERVICES[service](health.verdict()) else NOT_SERVING

    def check(request: Any, context: grpc.ServicerContext) -> Any:
        if request.service not in _SERVICES:
            known = ", ".join(repr(name) for name in _SERVICES)
            context.abort(grpc.StatusCode.NOT_FOUND, f"no service of that name; there are {known}")
        return HealthCheckResponse(status=status(request.service))

    room = threading.BoundedSemaphore(_WATCHERS)

    def watch(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if not room.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_WATCHERS} watch already; use Check")
        try:
            told = None
            while context.is_active() and not closed.is_set():
                now = status(request.service)
                if now != told:
                    yield HealthCheckResponse(status=now)
                    told = now
                health.wait_for_change(_LOOK_AGAIN)
        finally:
            room.release()

    wire = {
        "request_deserializer": HealthCheckRequest.FromString,
        "response_serializer": HealthCheckResponse.SerializeToString,
    }
    methods = {
        "Check": grpc.unary_unary_rpc_method_handler(check, **wire),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, **wire),
    }
    server = grpc.server(
        ThreadPoolExecutor(_CALLS, thread_name_prefix="health-grpc"),
        maximum_concurrent_rpcs=_CALLS,
        options=[("grpc.max_receive_message_length", 1 << 12), ("grpc.so_reuseport", 0)],
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    return server
