"""Callers that are gone without a word: their network, their machine, or their process stands still and nothing closes.

Triton waits for them for ever; a lease that nobody renews ends what they asked for. A pause of the engine's own process
is no sign that its callers are gone.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from hermes_deploy.client import Client, connection, wire
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE
from hermes_deploy.repository.engine_config import read_engine_config
from hermes_deploy.serving import Server, launch
from hermes_deploy.serving.lease_requests import MOST_RENEWED
from tests.serving.artifact import MAX_CONTEXT, seal
from tests.serving.processes import eventually
from tests.serving.raw_requests import failure, over_http, send, text
from tests.serving.serve_process import is_part
from tests.serving.test_cancel_ensemble import running, tensor
from tests.serving.test_metrics import scrape

MESSAGES = json.dumps([{"role": "user", "content": "hello"}])
KEY = "fedcba9876543210" * 2
TOKENS = MAX_CONTEXT - 200
DOORS = ("chat", "ensemble")
LEASE = 1.5
"""Seconds."""

SHIM = '''
import time
from pathlib import Path
from hermes_deploy.serving import engine_model, leases

PAUSES_COUNT = Path({switch!r})
"""While this file exists, time in which the process did not run counts against leases."""
real_session, real_now = engine_model.open_session, leases.Leases._now


def open_session(*arguments, **named):
    session = real_session(*arguments, **named)
    decode = session.decode

    def slow(*arguments):
        time.sleep(0.005)
        return decode(*arguments)

    session.decode = slow
    return session


def now(self):
    leases.LONGEST_PAUSE = 1e9 if PAUSES_COUNT.exists() else 1.0
    return real_now(self)


engine_model.open_session = open_session
leases.Leases._now = now
'''
"""Put before the engine's model: answers take most of a minute, and a protection can be switched off."""


@pytest.fixture(scope="module")
def pauses_count(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vanished") / "pauses-count"


@pytest.fixture(scope="module")
def slow_artifact(artifact: Path, pauses_count: Path) -> Path:
    slow = Path(shutil.copytree(artifact, pauses_count.parent / "artifact"))
    source = slow / ENGINE / "1/model.py"
    first = "import annotations\n"
    source.write_text(source.read_text().replace(first, first + SHIM.format(switch=str(pauses_count)), 1))
    seal(slow, read_engine_config(slow / ENGINE / "1"))
    return slow


@pytest.fixture(scope="module")
def server(slow_artifact: Path) -> Iterator[Server]:
    with Server(slow_artifact, grpc_port=0, http_port=0, metrics_port=0) as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_runs(server: Server) -> Iterator[None]:
    yield
    assert eventually(lambda: running(server) == 0), "something was not ended"


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (wire, connection):
        monkeypatch.setattr(module, "LEASE_MS", int(LEASE * 1e3))


class Network:
    """Between callers and `port`. `vanish`: from then on nothing passes, and nothing is closed."""

    def __init__(self, port: int) -> None:
        self._inside = port
        self._gone, self._over = threading.Event(), threading.Event()
        self._sockets: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def vanish(self) -> None:
        self._gone.set()

    def close(self) -> None:
        self._over.set()
        for end in (self._listening, *self._sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                outside = self._listening.accept()[0]
                inside = socket.create_connection(("127.0.0.1", self._inside))
                self._sockets += [outside, inside]
                for ends in ((outside, inside), (inside, outside)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self._gone.is_set():
                    self._over.wait()
                sink.sendall(data)


@contextmanager
def network(server: Server) -> Iterator[Network]:
    made = Network(server.grpc_port)
    try:
        yield made
    finally:
        made.close()


def without_lease(raw: triton.InferenceServerClient, model: str, key: str) -> None:
    """Begins a long answer that nobody has to renew. `key`: for the test, to end it."""
    begun = threading.Event()
    raw.start_stream(lambda result, error: begun.set())  # noqa: ARG005 - the names are Triton's
    inputs = [
        tensor("messages", text(MESSAGES.encode())),
        tensor("max_tokens", np.array([TOKENS], np.int32)),
        tensor("cancel_key", text(key.encode())),
    ]
    raw.async_stream_infer(model, inputs)
    assert begun.wait(30)


@pytest.mark.usefixtures("short_lease")
def test_a_network_that_is_gone_without_a_word_ends_its_callers_leases_and_nothing_else_does(server: Server) -> None:
    with ExitStack() as stack:
        near = stack.enter_context(network(server))
        for model in (ENGINE, ENSEMBLE):
            raw = stack.enter_context(triton.InferenceServerClient(near.url))
            stack.callback(near.close)  # before Triton's client, which would wait for its answer
            without_lease(raw, model, key=f"{model:32}")
        near.vanish()
        far = stack.enter_context(network(server))
        client = stack.enter_context(Client(far.url))
        for door in DOORS:
            next(stack.enter_context(client.stream("hello", door=door, max_tokens=TOKENS, temperature=0.0)))
        time.sleep(2 * LEASE)
        assert running(server) == 4, "those that are renewed go on; so do those of whom nothing is known"
        before = scrape(server)["hermes_cancellations_total"]
        far.vanish()
        assert eventually(lambda: running(server) == 2)
        time.sleep(LEASE)
        assert running(server) == 2, "without a lease Triton ends nothing"
        assert eventually(lambda: scrape(server)["hermes_cancellations_total"] == before + 2)
        for model in (ENGINE, ENSEMBLE):
            assert over_http(server, ENGINE, {"cancel": f"{model:32}"})[0] == 200


def test_pings_find_a_caller_of_the_direct_door_that_has_no_lease(
    slow_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "KEEPALIVE_MS", (1_000, 1_000))
    with Server(slow_artifact, grpc_port=0, http_port=0, metrics_port=0) as pinging, network(pinging) as near:
        raw = triton.InferenceServerClient(near.url)
        without_lease(raw, ENGINE, key=KEY)
        time.sleep(4)
        assert running(pinging) == 1, "whoever answers pings is there"
        near.vanish()
        assert eventually(lambda: running(pinging) == 0)
        near.close()
        raw.close()


STOPPABLE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from hermes_deploy.client import ClientError, Client, connection, wire
url, tokens, lease_ms = sys.argv[1], *map(int, sys.argv[2:])
wire.LEASE_MS = connection.LEASE_MS = lease_ms
client = Client(url)
streams = [client.stream("hello", door=door, max_tokens=tokens, temperature=0.0) for door in ("chat", "ensemble")]
for stream in streams:
    next(stream)
def read(stream):
    try:
        return stream.result().finish_reason
    except ClientError as error:
        return f"{type(error).__name__} {error}"
with ThreadPoolExecutor() as pool:
    ends = pool.map(read, streams)
    print("begun", flush=True)
    for end in ends:
        print(" ".join(end.split()), flush=True)
"""


@contextmanager
def reading(server: Server, lease: float) -> Iterator[subprocess.Popen[str]]:
    """A process that reads an answer through each door."""
    command = [sys.executable, "-c", STOPPABLE, server.endpoints.grpc, str(TOKENS), str(int(lease * 1e3))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            yield process
        finally:
            process.kill()


def test_a_client_that_is_stopped_loses_its_slots_and_is_told_why_when_it_goes_on(server: Server) -> None:
    with reading(server, lease=3600) as unbounded, reading(server, lease=LEASE) as stopped:
        assert running(server) == 4
        for process in (unbounded, stopped):
            process.send_signal(signal.SIGSTOP)
        assert eventually(lambda: running(server) == 2)
        with Client(server.endpoints.grpc) as other:
            for door in DOORS:
                assert other.ask("next", door=door, max_tokens=20, temperature=0.0).usage.completion_tokens == 20
        assert running(server) == 2, "a lease that is not over, as without one"
        stopped.send_signal(signal.SIGCONT)
        assert stopped.stdout is not None
        for end in stopped.stdout.read().splitlines():
            assert end.startswith("Cancelled "), end
            assert f"nobody renewed its lease for {LEASE:g} s, so its caller was taken to be gone" in end
        unbounded.kill()
        assert eventually(lambda: running(server) == 0)


def test_one_call_renews_many_and_not_more_than_it_may(server: Server) -> None:
    with triton.InferenceServerClient(server.endpoints.grpc) as raw:
        keys = np.array([f"{number:032}".encode() for number in range(MOST_RENEWED + 1)], dtype=np.object_)
        assert send(raw, ENGINE, renew=keys[:-1]) == []
        assert failure(raw, ENGINE, renew=keys) == ("INVALID_ARGUMENT", "renew has 1025 texts; at most 1024 are taken")
        code, message = failure(raw, ENGINE, renew=keys[:0])
        assert (code, "renew has no key" in message) == ("INVALID_ARGUMENT", True), message


@contextmanager
def paused(server: Server) -> Iterator[None]:
    """The engine's process, and the guard, who would take a stopped engine for a dead one: as in a frozen container."""
    assert server._guard is not None
    guard = psutil.Process(server._guard.pid)
    engine = next(p for p in guard.children(recursive=True) if is_part(p, ENGINE))
    for process in (guard, engine):
        process.suspend()
    yield
    for process in (engine, guard):
        process.resume()


@pytest.mark.parametrize("protected", [False, True])
def test_a_pause_of_the_engine_is_no_sign_that_its_callers_are_gone(
    server: Server, pauses_count: Path, protected: bool
) -> None:
    lease, pause = 2.5, 3.0
    if not protected:
        pauses_count.touch()
    body = {"messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0.0, "cancel_key": KEY}
    ended: list[Any] = []
    asking = threading.Thread(
        target=lambda: ended.append(over_http(server, ENGINE, {**body, "lease_ms": int(lease * 1e3)})[1][-1])
    )
    renew: Callable[[], Any] = lambda: over_http(server, ENGINE, {"renew": KEY})  # noqa: E731 - one call, twice
    asking.start()
    try:
        assert eventually(lambda: running(server) == 1)
        renew()
        with paused(server):
            time.sleep(pause)
        if protected:
            until = time.monotonic() + lease
            while time.monotonic() < until:
                renew()
                time.sleep(0.2)
            assert running(server) == 1
            over_http(server, ENGINE, {"cancel": KEY})
        asking.join(30)
        assert not asking.is_alive()
        assert ended[0]["finish_reason"] == "cancelled"
        assert ("nobody renewed" in ended[0].get("error_message", "")) is not protected
    finally:
        pauses_count.unlink(missing_ok=True)
