"""Whatever ends a build, nothing that looks finished stays and no compiler goes on alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from hermes_deploy.engines import PLAN, SIDECAR, EngineProgress, build_engine, read_sidecar, serving_profiles
from hermes_deploy.errors import EngineError
from hermes_deploy.targets import target
from tests.engines.conftest import recipe_with_fp16_head
from tests.engines.decoder_onnx import Decoder, write_decoder

LONG = Decoder("int4", layers=4)

DRIVER = """
import os, resource, sys
from pathlib import Path
from hermes_deploy.engines import build_engine, serving_profiles
from hermes_deploy.errors import EngineError
from hermes_deploy.targets import target
from tests.engines.conftest import recipe_with_fp16_head

onnx, folder, most_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
if most_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
told = set()
def tell(progress):
    if progress.phase not in told:
        told.add(progress.phase)
        print(progress.phase, flush=True)
try:
    build_engine(onnx, [target("sm86")], folder, recipe=recipe_with_fp16_head("int4-rtn"),
                 profiles=serving_profiles(32, 4), progress=tell)
except EngineError as error:
    print("EngineError:", error, flush=True)
"""


def _build(onnx: Path, folder: Path, progress: object = None) -> None:
    build_engine(
        onnx,
        [target("sm86")],
        folder,
        recipe=recipe_with_fp16_head("int4-rtn"),
        profiles=serving_profiles(32, 4),
        progress=progress,  # type: ignore[arg-type]
    )


def _compilers(parent: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        # one that was killed a moment ago is a zombie, and has no command line any more
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "hermes_deploy.engines.process" in process.cmdline():
                found.append(process)
    return found


def _drive(onnx: Path, folder: Path, most_bytes: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, str(onnx), str(folder), str(most_bytes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _until(driver: subprocess.Popen[str], phase: str) -> psutil.Process:
    """Waits for that phase; gives the compiler."""
    assert driver.stdout is not None
    for line in driver.stdout:
        if line.startswith(phase):
            return _compilers(driver.pid)[0]
    raise AssertionError(f"the build never reached {phase!r}")


def test_a_compiler_that_is_killed_is_an_error_that_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    onnx = write_decoder(tmp_path, LONG)

    def kill(progress: EngineProgress) -> None:
        if progress.phase == "Optimizing graph":
            for compiler in _compilers(os.getpid()):
                compiler.kill()

    with pytest.raises(EngineError, match=r"SIGKILL.*memory.*phase: "):
        _build(onnx, tmp_path / "engine", kill)
    assert list((tmp_path / "engine").iterdir()) == []


def test_a_compiler_that_crashes_is_an_error_and_not_the_end_of_the_caller(tmp_path: Path) -> None:
    onnx = write_decoder(tmp_path, LONG)

    def crash(progress: EngineProgress) -> None:
        if progress.phase == "Optimizing graph":
            for compiler in _compilers(os.getpid()):
                compiler.send_signal(signal.SIGSEGV)

    with pytest.raises(EngineError, match="SIGSEGV"):
        _build(onnx, tmp_path / "engine", crash)
    assert list((tmp_path / "engine").iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_caller_is_killed_the_compiler_ends_and_the_next_build_succeeds(
    tmp_path: Path, how: signal.Signals
) -> None:
    onnx, folder = write_decoder(tmp_path, LONG), tmp_path / "engine"
    with _drive(onnx, folder) as driver:
        compiler = _until(driver, "Optimizing graph")
        driver.send_signal(how)
        driver.wait(20)
        compiler.wait(20)
    assert not (folder / PLAN).exists()
    assert not (folder / SIDECAR).exists()
    _build(onnx, folder)
    read_sidecar(folder)
    assert sorted(path.name for path in folder.iterdir()) == [SIDECAR, PLAN]


def test_ctrl_c_ends_the_compiler_and_cleans_up(tmp_path: Path) -> None:
    onnx, folder = write_decoder(tmp_path, LONG), tmp_path / "engine"
    with _drive(onnx, folder) as driver:
        compiler = _until(driver, "Optimizing graph")
        driver.send_signal(signal.SIGINT)
        assert driver.wait(20) != 0
        assert not compiler.is_running()
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    onnx, folder = write_decoder(tmp_path, LONG), tmp_path / "engine"
    with _drive(onnx, folder, most_bytes=1 << 20) as driver:
        assert driver.stdout is not None
        said = driver.stdout.read()
    assert "EngineError: the engine could not be written: File too large" in said
    assert list(folder.iterdir()) == []


def test_two_builds_side_by_side_in_one_process_do_not_touch_each_other(tmp_path: Path) -> None:
    onnx = {size: write_decoder(tmp_path / str(size), Decoder("int4", block_size=size)) for size in (32, 128)}
    builders = [threading.Thread(target=_build, args=(onnx[size], tmp_path / f"engine_{size}")) for size in onnx]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    plans = {read_sidecar(tmp_path / f"engine_{size}").plan.sha256 for size in onnx}
    assert len(plans) == 2


def test_two_builds_into_one_folder_are_refused(tmp_path: Path) -> None:
    onnx, folder = write_decoder(tmp_path, LONG), tmp_path / "engine"
    refused: list[str] = []

    def second(progress: EngineProgress) -> None:
        if not refused and progress.phase == "Optimizing graph":
            with pytest.raises(EngineError) as error:
                _build(onnx, folder)
            refused.append(str(error.value))

    _build(onnx, folder, second)
    assert "another build is writing" in refused[0]
    read_sidecar(folder)


def test_a_failed_build_removes_the_engine_that_it_was_to_replace(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    _build(write_decoder(tmp_path, Decoder("int4", layers=1)), folder)
    with pytest.raises(EngineError):
        _build(write_decoder(tmp_path, Decoder("int4", layers=1, fp32_scale=True)), folder)
    assert list(folder.iterdir()) == []


def test_an_error_in_the_callers_progress_callback_ends_the_compiler(tmp_path: Path) -> None:
    onnx = write_decoder(tmp_path, LONG)

    def broken(_: EngineProgress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _build(onnx, tmp_path / "engine", broken)
    assert _compilers(os.getpid()) == []
    assert list((tmp_path / "engine").iterdir()) == []
