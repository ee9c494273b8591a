"""A full disk while serving: at the start it is said, later nothing but lines of logs is lost, and they are counted.

`/dev/full` and a limit on the size of files (RLIMIT_FSIZE) are full disks that need no rights.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from hermes_deploy.client import Client, ClientError, DeadlineExceeded
from hermes_deploy.errors import ServeError
from hermes_deploy.protocol.tensors import ENGINE
from hermes_deploy.repository.engine_config import read_engine_config
from hermes_deploy.serving import Server, guard
from hermes_deploy.serving.bounded_log import TAIL_BYTES, BoundedLog
from hermes_deploy.serving.own_log import CountingLines
from hermes_deploy.serving.server_log import open_tail
from tests.serving.artifact import seal
from tests.serving.processes import eventually
from tests.serving.serve_process import START, serving

FAULTY = """
from hermes_deploy.serving import engine_model

real = engine_model.read_request


def faulty(pb_utils, request, *others):
    if request.request_id() == "faulty":
        raise OSError("a fault of our own")
    return real(pb_utils, request, *others)


engine_model.read_request = faulty
"""

NO_PIPE = """
import os, sys
full = os.open("/dev/full", os.O_WRONLY)
os.dup2(full, 1)
os.dup2(full, 2)
command = sys.argv[sys.argv.index("--") + 1 :]
os.execv(command[0], command)
"""
"""In place of the guard: the server and its models write into the full disk themselves."""


@pytest.fixture(scope="module")
def faulty(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its engine has a fault of its own for requests of that id."""
    copy = Path(shutil.copytree(artifact, tmp_path_factory.mktemp("faulty") / "artifact"))
    source, first = copy / ENGINE / "1/model.py", "import annotations\n"
    source.write_text(source.read_text().replace(first, first + FAULTY, 1))
    seal(copy, read_engine_config(copy / ENGINE / "1"))
    return copy


def ask_faulty(at: str) -> str:
    with Client(at) as client, pytest.raises(ClientError) as failed:
        client.ask("hello", max_tokens=3, timeout=3, request_id="faulty")
    return f"{type(failed.value).__name__}: {failed.value}"


def test_a_server_that_writes_into_a_full_disk_itself_leaves_callers_without_an_answer(
    faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "no_pipe.py"
    script.write_text(NO_PIPE)
    monkeypatch.setattr(guard, "__file__", str(script))
    server = Server(faulty, grpc_port=0, http_port=0, metrics_port=0)
    try:
        server.start()
        assert ask_faulty(server.endpoints.grpc).startswith(DeadlineExceeded.__name__)
    finally:
        assert server._guard is not None
        server._guard.kill()  # nobody waits for the end of serve's pipe
        server.stop()


def test_serving_goes_on_while_the_log_cannot_be_written_and_the_loss_is_told(faulty: Path, tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    with serving(faulty, log=log) as served:
        assert "a fault of our own" in ask_faulty(served.grpc)
        assert eventually(lambda: log.read_bytes().count(b"Traceback") == 1)
        watcher = next(p for p in served.started() if guard.__file__ in p.cmdline())
        hard = watcher.rlimit(psutil.RLIMIT_FSIZE)[1]
        watcher.rlimit(psutil.RLIMIT_FSIZE, (log.stat().st_size, hard))
        for _ in range(3):
            assert "a fault of our own" in ask_faulty(served.grpc)
        with Client(served.grpc) as client:
            assert client.ask("hello", max_tokens=3).finish_reason == "length"
        assert served.ready()
        assert served.restarts() == 0
        assert log.read_bytes().count(b"Traceback") == 1
        watcher.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
        time.sleep(1.1)  # it tries once a second
        ask_faulty(served.grpc)
        assert eventually(lambda: b"lines of this log were lost: File too large" in log.read_bytes())
        assert eventually(lambda: log.read_bytes().count(b"Traceback") == 2)
        served.process.terminate()
        assert served.end()[0] == 0


def test_a_log_that_cannot_be_written_at_the_start_is_an_error_and_nothing_is_left(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ServeError, match=r"log /dev/full cannot be written: No space left on device. Free some space"):
        Server(artifact, grpc_port=0, http_port=0, metrics_port=0, log=Path("/dev/full")).start()
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_run_folder_is_an_error_that_says_what_to_do_and_nothing_is_left(
    artifact: Path, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [*START, str(artifact), "--health-port", "0", "--health-grpc-port", "0"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY)),
        check=False,
    )
    assert ended.returncode == ServeError.exit_code, ended.stderr
    assert "File too large" in ended.stderr
    assert "set TMPDIR to another folder" in ended.stderr
    assert list(tmp_path.iterdir()) == []


CHATTY = """
import sys
for number in range(20000):
    print(f"line {number}", file=sys.stderr, flush=True)
print("the last words", end="", file=sys.stderr)
"""


def follow(log: BoundedLog, code: str) -> None:
    """What a real process says, through a real pipe."""
    said, saying = os.pipe()
    process = subprocess.Popen([sys.executable, "-S", "-c", code], stderr=saying)
    os.close(saying)
    log.follow(said)
    os.close(said)
    assert process.wait(20) == 0


def test_the_log_stays_within_its_bound_and_has_the_last_words(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with open_tail() as tail:
        follow(BoundedLog(tail.fileno(), str(path), 1 << 16), CHATTY)
        kept = Path(f"{path}.1").read_text() + path.read_text()
        assert len(kept) <= 1 << 16
        assert kept.endswith("\nline 19999\nthe last words\n")
        first = int(kept.split()[1])
        assert kept.splitlines()[:-1] == [f"line {number}" for number in range(first, 20000)], (
            "a line is cut or missing"
        )
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log", "log.1"]
        tail.seek(0)
        assert tail.read().decode().endswith("\nline 19999\nthe last words\n")


def test_what_is_kept_in_memory_is_bounded() -> None:
    with open_tail() as tail:
        log = BoundedLog(tail.fileno(), None, 0)
        for number in range(200):
            log.write(b"%9d\n" % number * 1000)
        assert TAIL_BYTES <= os.fstat(tail.fileno()).st_size <= 2 * TAIL_BYTES
        tail.seek(-10, os.SEEK_END)
        assert tail.read() == b"      199\n"


def test_a_line_that_was_cut_by_the_full_disk_does_not_run_into_the_next(tmp_path: Path) -> None:
    code = """
import os, resource, sys, time
sys.path.insert(0, sys.argv[1])
from hermes_deploy.serving.bounded_log import BoundedLog
log = BoundedLog(os.memfd_create("tail"), sys.argv[2], 1 << 20)
resource.setrlimit(resource.RLIMIT_FSIZE, (25, resource.RLIM_INFINITY))
for number in range(5):
    log.write(b"a line of words\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
time.sleep(1.1)
log.write(b"again\\n")
"""
    subprocess.run([sys.executable, "-c", code, str(Path.cwd()), str(tmp_path / "log")], check=True)
    assert (tmp_path / "log").read_text().splitlines() == [
        "a line of words",
        "a line of",
        "guard: 4 lines of this log were lost: File too large",
        "again",
    ]


def test_serves_own_lines_that_are_lost_are_counted(tmp_path: Path) -> None:
    logger = logging.Logger("alone")
    with (tmp_path / "stderr").open("w") as stream, Path("/dev/full").open("w") as full:
        kept = os.dup(stream.fileno())
        logger.addHandler(CountingLines(stream))
        logger.warning("first")
        os.dup2(full.fileno(), stream.fileno())
        logger.warning("second")
        logger.warning("third")
        os.dup2(kept, stream.fileno())
        logger.warning("fourth")
        os.close(kept)
    assert (tmp_path / "stderr").read_text().splitlines() == [
        "first",
        "2 lines of this log could not be written and are lost",
        "fourth",
    ]


def in_a_small_shm(code: str, *arguments: str) -> Callable[[], subprocess.CompletedProcess[str]]:
    script = 'mount -t tmpfs -o size=6m hermes-test /dev/shm && exec "$@"'
    command = ["unshare", "-r", "-m", "sh", "-c", script, "sh", sys.executable, "-c", code, *arguments]
    return lambda: subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


SMALL_SHM = """
import os, sys
from pathlib import Path
from hermes_deploy.client import Client, ClientError
from hermes_deploy.serving import Server

with Server(Path(sys.argv[1]), grpc_port=0, http_port=0, metrics_port=0) as server:
    with Client(server.endpoints.grpc) as client:
        filler = os.open("/dev/shm/filler", os.O_CREAT | os.O_WRONLY)
        try:
            while True:
                os.write(filler, bytes(4096))
        except OSError:
            pass
        for door in ("chat", "ensemble"):
            try:
                client.ask("x" * 7000, max_tokens=3, prompt_logprobs=20, door=door, timeout=20)
                print("answered")
            except ClientError as error:
                print(error)
            print(client.ask("hello", max_tokens=3, door=door).finish_reason)
        os.unlink("/dev/shm/filler")
        os.close(filler)
        print(client.ask("x" * 7000, max_tokens=3, prompt_logprobs=20).finish_reason)
    server.check()
"""


def test_a_full_shared_memory_fails_those_who_need_more_of_it_and_nobody_else(artifact: Path) -> None:
    if subprocess.run(["unshare", "-r", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small /dev/shm of their own")
    ended = in_a_small_shm(SMALL_SHM, str(artifact))()
    assert ended.returncode == 0, ended.stderr
    first, short, second, again, large = [line for line in ended.stdout.splitlines() if "hermes_" not in line[:7]]
    assert "Failed to increase the shared memory pool size" in first
    assert "Failed to increase the shared memory pool size" in second
    assert (short, again, large) == ("length", "length", "length")
