"""`Server`: an artifact on a running tritonserver, from verified to really ready to gone.

    with Server(artifact, grpc_port=0, http_port=0, metrics_port=0) as server:
        ... server.endpoints.grpc ...

Takes an artifact that `build` wrote. Who watches it, drains it and starts it again is supervisor.py. Between this
process and tritonserver stands `guard.py`, so that nothing is left behind however this process ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn

from hermes_deploy.errors import ServeError, UsageError
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE, MODELS
from hermes_deploy.serving import guard, launch, preflight
from hermes_deploy.serving.doorman import Bounds, Doorman
from hermes_deploy.serving.loaded_files import FilesLook, LoadedFiles, hold_loaded
from hermes_deploy.serving.ports import allow_connections, claim_ports, resolve_host
from hermes_deploy.serving.probe import generates, says_ready
from hermes_deploy.serving.request_log import RequestLogReader
from hermes_deploy.serving.server_log import begin_log, last_words, open_tail
from hermes_deploy.serving.settings import Settings, settings_of

_EXIT_SECONDS = 10.0
_STARTS = 3
"""At most, where Triton itself crashes. As often a token is asked for, where it calls a live process dead."""
_NO_CORE = "is not healthy"
"""What Triton says of a model process that did not tell it for a second that it lives: a busy machine does that too."""
_SHELL_SAFE = re.compile(r"[A-Za-z0-9/._-]+")


_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoints:
    """`host:port` for gRPC, URLs for the others."""

    grpc: str
    http: str
    metrics: str


class Server:
    """One tritonserver with the four models. `changed`: fields of `Settings`, over those of `settings`.

    Ports: 0 = a free one; read them back after `start`. They stay the same when it is started again.
    """

    def __init__(self, artifact: Path, settings: Settings | None = None, **changed: Any) -> None:
        self.settings = settings_of({**dict(settings or Settings()), **changed})
        self._artifact = artifact
        self._ports: dict[str, int] = {
            name: getattr(self.settings, f"{name}_port") for name in ("grpc", "http", "metrics")
        }
        self._host = self.settings.host
        self._inside: dict[str, int] = {}
        self._doormen: list[Doorman] = []
        self._guard: subprocess.Popen[bytes] | None = None
        self._lifeline: int | None = None
        self._run_folder: Path | None = None
        self._requests: RequestLogReader | None = None
        self._shm_prefix = f"hermes-{os.getpid()}-{secrets.token_hex(4)}-"
        self._output: IO[bytes] | None = None
        self._files: LoadedFiles | None = None
        self._started = False

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
        host = self.host
        return Endpoints(
            grpc=f"{host}:{self.grpc_port}",
            http=f"http://{host}:{self.http_port}",
            metrics=f"http://{host}:{self.metrics_port}/metrics",
        )

    @property
    def inside(self) -> Endpoints:
        """The same of Triton's own ports, past the doormen: for those that watch it."""
        http, metrics = (f"http://{launch.INSIDE}:{self._inside[name]}" for name in ("http", "metrics"))
        return Endpoints(self.endpoints.grpc, http, f"{metrics}/metrics")

    @property
    def inside_http_port(self) -> int:
        return self._inside["http"]

    def start(self) -> Server:
        """Verifies, starts, and returns when a token was generated.

        Raises ArtifactError, UsageError or ServeError; then nothing is left running.
        """
        plan = preflight.check(
            self._artifact,
            max_context=self.settings.max_context,
            max_slots=self.settings.max_slots,
            require_signature=self.settings.require_signature,
        )
        for warning in plan.warnings:
            _LOG.warning("%s", warning)
        if self.settings.log_content:
            _LOG.warning("log_content is on: prompts and answers are written into this log, whatever they hold")
        allow_connections()
        self._host = resolve_host(self._host)
        self._ports = claim_ports(self._host, self._ports)
        for left in reversed(range(_STARTS)):
            try:
                self._start_once(plan)
                break
            except _CrashedWhileLoading as crash:
                # seen once in some hundred starts of Triton 2.51, and twice in a row on a machine under load 9: its
                # Python backend aborts on a lock of its own while the models load, before anything of ours has run
                if not left:
                    raise
                _LOG.warning("%s\nTriton itself crashed; starting it once more.", crash)
        return self

    def _start_once(self, plan: preflight.Plan) -> None:
        self._run_folder = _make_run_folder()
        try:
            try:
                self._launch(plan, self._run_folder)
            except OSError as error:
                where = error.filename or self._run_folder
                raise ServeError(
                    f"{where} cannot be used: {error.strerror}. What a server needs while it runs is made in "
                    f"{self._run_folder.parent}: free some space there, or set TMPDIR to another folder"
                ) from None
            self._await_ready()
            self._files = hold_loaded(plan.artifact, plan.before, plan.engine_files)
        except BaseException:
            self.stop()
            raise

    @property
    def control(self) -> Path:
        """The engine's control socket (control.py), while the server runs."""
        assert self._run_folder is not None, "start() comes first"
        return self._run_folder / launch.CONTROL_SOCKET

    @property
    def host(self) -> str:
        """An address at which this machine reaches the server."""
        return "127.0.0.1" if self._host == "0.0.0.0" else self._host

    def wait(self) -> NoReturn:
        """Until the server ends, which it does not by itself: ServeError. A signal handler may raise through it."""
        assert self._guard is not None, "start() comes first"
        self._guard.wait()
        raise ServeError(self._obituary("the server ended"))

    def check(self) -> None:
        """Raises ServeError, with its last words, when the server or a doorman has ended."""
        if self._guard is None or self._guard.poll() is not None:
            raise ServeError(self._obituary("the server ended"))
        if not all(doorman.alive for doorman in self._doormen):
            raise ServeError(self._obituary("a doorman before the server's HTTP ended"))

    @property
    def owing(self) -> int:
        """Callers over HTTP who have not been given all of their answer."""
        return sum(doorman.owing for doorman in self._doormen)

    def look_at_files(self) -> FilesLook:
        """Whether what it loaded from the artifact is still what was verified."""
        assert self._files is not None, "start() comes first"
        return self._files.look()

    def stop(self, *, at_once: bool = False) -> None:
        """Stops the server and waits until nothing of it is left. May be called again.

        `at_once`: it is past repair, and is not given time to finish anything.
        """
        if self._lifeline is not None:
            if at_once:
                with contextlib.suppress(BrokenPipeError):  # it has ended
                    os.write(self._lifeline, bytes([0]))
            os.close(self._lifeline)
            self._lifeline = None
        if self._guard is not None:
            try:
                self._guard.wait(_EXIT_SECONDS + 5)
            except subprocess.TimeoutExpired:
                self._guard.kill()
                self._guard.wait()
            # the guard did this, unless it was killed
            guard.kill_group(self._guard.pid, self._shm_prefix)
        if self._files is not None:
            self._files.close()
            self._files = None
        # now every answer is cut or whole
        while self._doormen:
            self._doormen.pop().close()
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._run_folder is not None:
            # the guard did this, unless it was killed or never started
            guard.sweep(self._run_folder, self._shm_prefix)
            self._run_folder = None

    def last_words(self, what: str) -> str:
        """`what`, and the lines of the server's log that say why."""
        return self._obituary(what)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self, plan: preflight.Plan, run_folder: Path) -> None:
        triton = launch.find_triton(run_folder)
        models = run_folder / "models"
        launch.write_models(plan, models, self.settings)
        self._requests = RequestLogReader(run_folder / launch.REQUEST_PIPE, content=self.settings.log_content)
        secret = self.settings.admin_secret
        shut = secrets.token_hex(16) if secret is None else secret.get_secret_value()
        log = "" if self.settings.log is None else os.path.realpath(self.settings.log)
        if log and not self._started:  # later a full disk does not stop the server: the guard counts what is lost
            begin_log(log)
        self._started = True
        self._inside = self._post_doormen(plan)
        ports = {**self._ports, **self._inside}
        command = launch.command(triton, models, self._host, ports, self._shm_prefix, shut)
        read_end, self._lifeline = os.pipe()
        guard_arguments = [str(read_end), str(run_folder), self._shm_prefix, str(_EXIT_SECONDS)]
        guard_arguments += [log, str(self.settings.log_bytes)]
        try:
            if self._output is not None:
                self._output.close()
            self._output = open_tail()
            self._guard = subprocess.Popen(
                # -I -S: neither this environment nor site-packages; the guard is plain Python
                [sys.executable, "-I", "-S", guard.__file__, *guard_arguments, "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **triton.environment},
                pass_fds=[read_end],
                # a group and not a session: Linux shares cores out among sessions (sched_autogroup), and on a busy
                # machine one of them then waits for seconds, be it the server or who watches it
                process_group=0,
            )
        finally:
            os.close(read_end)

    def _post_doormen(self, plan: preflight.Plan) -> dict[str, int]:
        """Before Triton's HTTP and metrics; the ports that these shall have."""
        body = {"http": self.settings.max_request_bytes or most_bytes(plan.max_context), "metrics": 0}
        inside = claim_ports(launch.INSIDE, dict.fromkeys(body, 0))
        while set(inside.values()) & set(self._ports.values()):  # which nobody may have bound yet
            inside = claim_ports(launch.INSIDE, dict.fromkeys(body, 0))
        for name, most in body.items():
            bounds = Bounds(body_bytes=most, held_bytes=4 * most + (16 << 20))
            self._doormen.append(Doorman(self._host, self._ports[name], inside[name], bounds))
        return inside

    def _await_ready(self) -> None:
        assert self._guard is not None and self._lifeline is not None
        host, port = self.host, self.http_port
        deadline = time.monotonic() + self.settings.ready_timeout
        while not says_ready(launch.INSIDE, self.inside_http_port):
            if self._guard.poll() is not None:
                crashed = self._guard.returncode in (128 + signal.SIGABRT, 128 + signal.SIGSEGV)
                kind = _CrashedWhileLoading if crashed else ServeError
                raise kind(self._obituary("the server ended while it was loading"))
            if time.monotonic() > deadline:
                raise ServeError(self._obituary(f"the server was not ready after {self.settings.ready_timeout:g} s"))
            time.sleep(0.05)
        for model in (ENGINE, ENSEMBLE):
            for _ in range(_STARTS):
                problem = generates(host, port, model, max(1.0, deadline - time.monotonic()))
                if _NO_CORE not in problem:
                    break
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

    def _obituary(self, what: str) -> str:
        """`what`, the exit status, and the lines of the log that say why."""
        status = self._guard.poll() if self._guard is not None else None
        if status == guard.MODEL_DIED:
            what += ": a model process died or was stopped"
        elif status is not None:
            what += f" (exit status {status})"
        told = last_words(self._output) if self._output is not None else ""
        return f"{what}. Its log says:\n{told}" if told else f"{what}, and its log is empty"


def most_bytes(max_context: int) -> int:
    """Bytes of an HTTP body that no chat of the context exceeds: tokens are some 4 bytes, and JSON in JSON escapes."""
    return min((64 << 10) + 128 * max_context, 16 << 20)


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
