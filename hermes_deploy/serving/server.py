"""`Server`: an artifact on a running tritonserver, from verified to really ready to gone.

    with Server(artifact, grpc_port=0, http_port=0, metrics_port=0) as server:
        ... server.endpoints.grpc ...

Takes an artifact that `build` wrote. Between this process and tritonserver stands `guard.py`, so
that nothing is left behind however this process ends.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, NoReturn

from hermes_deploy.errors import ServeError, UsageError
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE, MODELS
from hermes_deploy.serving import guard, launch, preflight
from hermes_deploy.serving.ports import claim_ports, resolve_host
from hermes_deploy.serving.probe import generates, says_ready
from hermes_deploy.serving.server_log import last_words

_EXIT_SECONDS = 10.0
_SHELL_SAFE = re.compile(r"[A-Za-z0-9/._-]+")


_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoints:
    """`host:port` for gRPC, URLs for the others."""

    grpc: str
    http: str
    metrics: str


class Server:
    """One tritonserver with the four models. Ports: 0 = a free one; read them back after `start`.

    `max_context` tokens and `max_slots` chats may lower what the artifact was built for.
    `require_signature`: the public key that must have signed the artifact.
    `log`: file that gets all output of the server; None = it is only kept for error messages.
    `ready_timeout`: seconds until a token must have been generated.
    """

    def __init__(
        self,
        artifact: Path,
        *,
        grpc_port: int = 8001,
        http_port: int = 8000,
        metrics_port: int = 8002,
        host: str = "127.0.0.1",
        max_context: int | None = None,
        max_slots: int | None = None,
        require_signature: Path | None = None,
        log: Path | None = None,
        ready_timeout: float = 300.0,
    ) -> None:
        self._artifact = artifact
        self._ports = {"grpc": grpc_port, "http": http_port, "metrics": metrics_port}
        self._host = host
        self._limits = (max_context, max_slots)
        self._require_signature = require_signature
        self._log = log
        self._ready_timeout = ready_timeout
        self._guard: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._run_folder: Path | None = None
        self._shm_prefix = f"hermes-{os.getpid()}-{secrets.token_hex(4)}-"
        self._output: IO[bytes] | None = None

    @property
    def grpc_port(self) -> int:
        return self._ports["grpc"]

    @property
    def http_port(self) -> int:
        return self._ports["http"]

    @property
    def metrics_port(self) -> int:
        return self._ports["metrics"]

    @property
    def endpoints(self) -> Endpoints:
        host = self._reachable_host()
        return Endpoints(
            grpc=f"{host}:{self.grpc_port}",
            http=f"http://{host}:{self.http_port}",
            metrics=f"http://{host}:{self.metrics_port}/metrics",
        )

    def start(self) -> Server:
        """Verifies, starts, and returns when a token was generated.

        Raises ArtifactError, UsageError or ServeError; then nothing is left running.
        """
        plan = preflight.check(
            self._artifact,
            max_context=self._limits[0],
            max_slots=self._limits[1],
            require_signature=self._require_signature,
        )
        for warning in plan.warnings:
            _LOG.warning("%s", warning)
        self._host = resolve_host(self._host)
        self._ports = claim_ports(self._host, self._ports)
        try:
            self._start_once(plan)
        except _CrashedWhileLoading as crash:
            # seen once in some hundred starts of Triton 2.51: its Python backend aborts on a lock of its own
            # while the models load, before anything of ours has run
            _LOG.warning("%s\nTriton itself crashed; starting it once more.", crash)
            self._start_once(plan)
        return self

    def _start_once(self, plan: preflight.Plan) -> None:
        self._run_folder = _make_run_folder()
        try:
            self._launch(plan, self._run_folder)
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def wait(self) -> NoReturn:
        """Until the server ends, which it does not by itself: ServeError. A signal handler may raise through it."""
        assert self._guard is not None, "start() comes first"
        self._guard.wait()
        raise ServeError(self._obituary("the server ended"))

    def stop(self) -> None:
        """Stops the server and waits until nothing of it is left. May be called again."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self._guard is not None:
            try:
                self._guard.wait(_EXIT_SECONDS + 5)
            except subprocess.TimeoutExpired:
                os.killpg(self._guard.pid, signal.SIGKILL)
                self._guard.wait()
        if self._run_folder is not None:
            # the guard did this, unless it was killed or never started
            guard.sweep(self._run_folder, self._shm_prefix)
            self._run_folder = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self, plan: preflight.Plan, run_folder: Path) -> None:
        triton = launch.find_triton(run_folder)
        models = run_folder / "models"
        launch.write_models(plan, models)
        command = launch.command(triton, models, self._host, self._ports, self._shm_prefix)
        read_end, self._lifeline = os.pipe()
        guard_arguments = [str(read_end), str(run_folder), self._shm_prefix, str(_EXIT_SECONDS)]
        try:
            # without a name it leaves nothing behind, and outlives the run folder that the guard removes
            self._output = tempfile.TemporaryFile() if self._log is None else self._log.open("w+b")  # noqa: SIM115
            self._guard = subprocess.Popen(
                # -I -S: neither this environment nor site-packages; the guard is plain Python
                [sys.executable, "-I", "-S", guard.__file__, *guard_arguments, "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **triton.environment},
                pass_fds=[read_end],
                start_new_session=True,
            )
        except OSError as error:
            raise ServeError(f"{error.filename or triton.binary} cannot be used: {error.strerror}") from None
        finally:
            os.close(read_end)

    def _await_ready(self) -> None:
        assert self._guard is not None and self._lifeline is not None
        host, port = self._reachable_host(), self.http_port
        deadline = time.monotonic() + self._ready_timeout
        while not says_ready(host, port):
            if self._guard.poll() is not None:
                crashed = self._guard.returncode in (128 + signal.SIGABRT, 128 + signal.SIGSEGV)
                kind = _CrashedWhileLoading if crashed else ServeError
                raise kind(self._obituary("the server ended while it was loading"))
            if time.monotonic() > deadline:
                raise ServeError(self._obituary(f"the server was not ready after {self._ready_timeout:g} s"))
            time.sleep(0.05)
        for model in (ENGINE, ENSEMBLE):
            problem = generates(host, port, model, max(1.0, deadline - time.monotonic()))
            if "OUT_OF_RANGE" in problem:
                raise UsageError(f"--max-context is too low even for one short question: {problem}")
            if problem:
                raise ServeError(self._obituary(f"the server is up, but {model} generated nothing: {problem}"))
        # every model but the ensemble is a process
        try:
            os.write(self._lifeline, bytes([len(MODELS) - 1]))
        except BrokenPipeError:
            self._guard.wait()
            raise ServeError(self._obituary("the server ended just after it was ready")) from None

    def _reachable_host(self) -> str:
        return "127.0.0.1" if self._host == "0.0.0.0" else self._host

    def _obituary(self, what: str) -> str:
        """`what`, the exit status, and the lines of the log that say why."""
        status = self._guard.poll() if self._guard is not None else None
        if status == guard.MODEL_DIED:
            what += ": a model process died"
        elif status is not None:
            what += f" (exit status {status})"
        told = last_words(self._output) if self._output is not None else ""
        return f"{what}. Its log says:\n{told}" if told else f"{what}, and its log is empty"


def _make_run_folder() -> Path:
    try:
        folder = Path(tempfile.mkdtemp(prefix="hermes-serve-"))
    except OSError as error:
        raise ServeError(f"no temporary folder can be made: {error.strerror}. Set TMPDIR to a writable one") from None
    if not _SHELL_SAFE.fullmatch(str(folder)):
        folder.rmdir()
        raise ServeError(
            f"the temporary folder is {str(folder.parent)!r}; Triton starts its models through a shell, from a path "
            "that may hold only ASCII letters, digits and / . _ -. Set TMPDIR, for example: TMPDIR=/tmp"
        )
    return folder


class _CrashedWhileLoading(ServeError):
    """tritonserver ended by an abort or a segmentation fault before it was ready."""


class _Stopped(BaseException):
    """SIGINT or SIGTERM, raised in the main thread; not an Exception: nothing may swallow it."""


def serve(server: Server, on_ready: Callable[[Endpoints], None]) -> None:
    """Serves until SIGINT or SIGTERM, then stops cleanly and returns. For the main thread.

    `on_ready` gets the endpoints once a token was generated. Raises what `Server.start` raises,
    and ServeError when the server dies.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # it is stopping already
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with server:
            on_ready(server.endpoints)
            server.wait()
    except _Stopped:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
