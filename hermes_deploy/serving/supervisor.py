"""Keeps a server running: watches it, starts it again when it fails, drains it when it is asked to stop.

    serve(server, on_ready)

The first start is not repeated: what fails then fails again, and who started it is there to read why. Later, a
failed server is started again after 1, 2, 4, … 30 s, on the same ports. After `restarts` failures within
`restart_window` one more is the last: ServeError, with the server's last words.

SIGTERM or SIGINT drains (drain.py) and returns; a second one ends what still runs at once, in-band.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from hermes_deploy.errors import ServeError
from hermes_deploy.serving.drain import Draining
from hermes_deploy.serving.health import Health
from hermes_deploy.serving.health_ports import HealthPorts
from hermes_deploy.serving.launch import INSIDE
from hermes_deploy.serving.ports import resolve_host
from hermes_deploy.serving.server import Endpoints, Server
from hermes_deploy.serving.watch import INTERVAL, Limits, Watch

_LOG = logging.getLogger(__name__)

LONGEST_PAUSE = 30.0
_DYING_SECONDS = 0.5
"""That the engine has to tell its callers in-band that it died, before the server goes."""
_ENDING_SECONDS = 5.0
"""In which answers that were ended must be gone."""


@dataclass(frozen=True)
class Service:
    """Where it is called, and where its health is asked (`health` a URL, `health_grpc` host:port)."""

    endpoints: Endpoints
    health: str
    health_grpc: str


def serve(server: Server, on_ready: Callable[[Service], None]) -> None:
    """Serves until SIGINT or SIGTERM, then drains, stops and returns. For the main thread.

    `on_ready` is called once, when the first token was generated. Raises what `Server.start` raises, and
    ServeError when the server fails too often.
    """
    health = Health()
    settings = server.settings
    ports = HealthPorts(health, resolve_host(settings.host), settings.health_port, settings.health_grpc_port)
    try:
        _Supervisor(server, health).run(lambda: on_ready(_service(server, ports)))
    finally:
        ports.close()


def _service(server: Server, ports: HealthPorts) -> Service:
    return Service(server.endpoints, f"http://{server.host}:{ports.http_port}", f"{server.host}:{ports.grpc_port}")


class _Stopped(BaseException):
    """SIGINT or SIGTERM, raised in the main thread; not an Exception: nothing may swallow it."""


class _Failed(Exception):
    """The server that was running is past repair. The text says why."""


class _Supervisor:
    def __init__(self, server: Server, health: Health) -> None:
        self._server = server
        self._health = health
        self._settings = server.settings
        self._failures: deque[float] = deque()
        self._up = False

    def run(self, on_ready: Callable[[], None]) -> None:
        with _signals() as ignore:
            try:
                try:
                    self._start("starting")
                    on_ready()
                    while True:
                        self._watch_until_it_fails()
                except _Stopped:
                    with suppress(_Stopped):
                        self._drain(ignore)
            finally:
                ignore()
                self._up = False
                self._server.stop()
                self._health.enter("stopped")

    def _start(self, phase: str) -> None:
        self._health.enter("restarting" if phase == "restarting" else "starting")
        self._server.start()
        self._up = True
        self._health.enter("serving")

    def _watch_until_it_fails(self) -> None:
        settings = self._settings
        limits = Limits(settings.stall_after, settings.silence_timeout, settings.engine_timeout)
        watch = Watch(self._server.control, INSIDE, self._server.inside_http_port, limits)
        try:
            while True:
                time.sleep(INTERVAL)
                self._look(watch)
        except _Failed as failed:
            self._up = False
            self._replace(str(failed))

    def _look(self, watch: Watch) -> None:
        try:
            self._server.check()
        except ServeError as error:
            raise _Failed(str(error)) from None
        look, files = watch.look(), self._server.look_at_files()
        self._health.seen(look.problem or files.problem, look.engine)
        if files.news is not None:
            _LOG.error("%s", files.news)
            self._health.artifact_changed(files.news)
        if files.fatal:
            raise _Failed(files.problem or "")
        if look.fatal:
            raise _Failed(self._server.last_words(look.problem or "the server failed"))

    def _replace(self, why: str) -> None:
        """Starts the server again, as often as it takes; ServeError when that was too often."""
        while True:
            self._health.failed(why)
            time.sleep(_DYING_SECONDS)
            self._server.stop(at_once=True)
            pause = self._pause_after(why)
            _LOG.error("%s\nStarting the server again in %g s.", why, pause)
            time.sleep(pause)
            try:
                self._health.restarted()
                self._start("restarting")
            except ServeError as error:
                why = str(error)
                continue
            _LOG.warning("the server is up again; restarts so far: %d", self._health.restarts)
            return

    def _pause_after(self, why: str) -> float:
        now, settings = time.monotonic(), self._settings
        while self._failures and now - self._failures[0] > settings.restart_window:
            self._failures.popleft()
        self._failures.append(now)
        count = len(self._failures)
        if count > settings.restarts:
            self._give_up(count, why)
        return min(settings.restart_backoff * 2.0 ** (count - 1), LONGEST_PAUSE)

    def _give_up(self, count: int, why: str) -> NoReturn:
        many = f"failed {count} times within {self._settings.restart_window:g} s" if count > 1 else "failed"
        raise ServeError(
            f"the server {many}; {self._settings.restarts} restarts are allowed (setting `restarts`), so it is not "
            f"started again. The last failure: {why}"
        )

    def _drain(self, ignore_signals: Callable[[], None]) -> None:
        """Readiness off, then no new requests, then nothing that runs, then the server may stop."""
        if not self._up:
            return
        self._health.enter("draining")
        server = self._server
        draining = Draining(server.control, server.inside.metrics, lambda: server.owing, server.grpc_port)
        timeout = self._settings.drain_timeout
        until = time.monotonic() + timeout
        why = f"the server is stopping, and this answer did not end within the {timeout:g} s that it had"
        try:
            _LOG.info("draining: %d requests run; they have %g s", draining.refuse(), timeout)
            left = self._emptied(draining, timeout)
            ignore_signals()
        except _Stopped:
            why, left, until = "the server was told twice to stop, and stops now", 1, 0.0
        if left:
            _LOG.warning("ending what still runs: %s", why)
            if self._emptied(draining, _ENDING_SECONDS, f"{why}. Ask again, here in a moment or at another server."):
                _LOG.error("the engine did not end its answers within %g s", _ENDING_SECONDS)
        if not draining.settled(until):
            _LOG.error("Triton has not delivered everything; it is stopped all the same")

    def _emptied(self, draining: Draining, seconds: float, end: str = "") -> int:
        """See `Draining.emptied`; goes on telling that somebody looks after it."""
        until = time.monotonic() + seconds
        while True:
            self._server.check()
            self._health.seen(None)
            left = draining.emptied(min(until, time.monotonic() + INTERVAL), end)
            if not left or time.monotonic() >= until:
                return left


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """SIGINT and SIGTERM raise _Stopped, twice at most; gives a function after which they are ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    told = 0

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal told
        told += 1
        if told == 2:
            ignore()
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield ignore
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
