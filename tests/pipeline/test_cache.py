"""The stage cache by itself: what is there is used, once made, by everyone, until somebody makes room."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hermes_deploy.errors import BuildError, UsageError
from hermes_deploy.pipeline.cache import Entry, StageCache, stages_folder
from hermes_deploy.pipeline.cache_upkeep import list_entries, prune
from hermes_deploy.pipeline.copying import copy_file
from hermes_deploy.pipeline.keys import ROOMS, StageKey, code_fingerprint, stage_key
from tests.test_architecture import FILES, room_of, rooms_imported


def key(of: str = "one", model: str = "tiny") -> StageKey:
    return StageKey("graph", "graph cpu", model, {"of": of})


def writes(text: str, made: list[str] | None = None) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        if made is not None:
            made.append(text)
        (folder / "file").write_text(text)

    return make


def fill(root: Path, *names: str) -> list[Entry]:
    with StageCache(root) as cache:
        return [cache.obtain(key(name), writes(name * 1000)) for name in names]


def test_a_stage_is_made_once_and_then_used_again(tmp_path: Path) -> None:
    made: list[str] = []
    for _ in range(2):
        with StageCache(tmp_path) as cache:
            entry = cache.obtain(key(), writes("x", made))
            assert (entry.folder / "file").read_text() == "x"
    assert made == ["x"]
    assert entry.reused
    about = json.loads((entry.folder / "entry.json").read_text())
    assert (about["stage"], about["model"], about["parts"]) == ("graph", "tiny", {"of": "one"})


def test_a_name_that_no_result_depends_on_is_not_in_the_key() -> None:
    assert key(model="a").digest == key(model="b").digest
    assert key("one").digest != key("two").digest


@pytest.mark.parametrize("damage", ["change", "remove", "add", "entry", "no entry", "link", "file", "endless"])
def test_a_damaged_entry_is_said_and_made_again(damage: str, tmp_path: Path) -> None:
    (entry,) = fill(tmp_path, "one")
    if damage == "change":
        (entry.folder / "file").write_text("ONE" * 1000)
    elif damage == "remove":
        (entry.folder / "file").unlink()
    elif damage == "add":
        (entry.folder / "more").write_text("x")
    elif damage == "entry":
        (entry.folder / "entry.json").write_text("{")
    elif damage == "link":
        entry.folder.symlink_to(entry.folder.rename(tmp_path / "elsewhere"))
    elif damage == "endless":
        (entry.folder / "file").unlink()
        (entry.folder / "file").symlink_to("/dev/zero")
    elif damage == "file":
        shutil.rmtree(entry.folder)
        entry.folder.write_text("x")
    else:
        (entry.folder / "entry.json").unlink()
    said: list[str] = []
    with StageCache(tmp_path) as cache:
        again = cache.obtain(key(), writes("again"), said.append)
    assert not again.reused
    assert (again.folder / "file").read_text() == "again"
    assert [str(entry.folder) in words and "damaged" in words and "made again" in words for words in said] == [True]


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise BuildError("no")

    with StageCache(tmp_path) as cache, pytest.raises(BuildError):
        cache.obtain(key(), fails)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BuildError, match=r"HERMES_DEPLOY_STAGES.*--no-cache"), StageCache(tmp_path / "file" / "cache"):
        pass


@pytest.mark.parametrize(("chosen", "message"), [("/x\udcff", "is not UTF-8"), ("~no-such-user/x", "home of nobody")])
def test_a_cache_folder_that_is_no_path_is_refused(chosen: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERMES_DEPLOY_STAGES", chosen)
    with pytest.raises(UsageError, match=message):
        stages_folder()


MAKER = """
import sys, time
from pathlib import Path
from hermes_deploy.pipeline.cache import StageCache
from hermes_deploy.pipeline.keys import StageKey

def make(folder):
    print("making", flush=True)
    sys.stdin.readline()
    (folder / "file").write_text("of the first")

with StageCache(Path(sys.argv[1])) as cache:
    cache.obtain(StageKey("graph", "graph cpu", "tiny", {"of": "one"}), make)
    print("made", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Another build, in the middle of making the stage; a line on its stdin lets it go on."""
    command = [sys.executable, "-c", MAKER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "making\n"
        yield process
        process.kill()


def obtain_meanwhile(root: Path, made: list[str], said: list[str]) -> tuple[threading.Thread, list[Entry]]:
    found: list[Entry] = []

    def run() -> None:
        with StageCache(root) as cache:
            found.append(cache.obtain(key(), writes("of the second", made), said.append))

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 30
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    assert said == ["another build is making the same; waiting for it"]
    return thread, found


def test_the_second_build_waits_for_the_first_and_uses_what_it_made(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    made: list[str] = []
    thread, found = obtain_meanwhile(tmp_path, made, [])
    assert found == []
    assert other.stdin is not None
    other.stdin.write("\n")
    other.stdin.flush()
    thread.join(30)
    assert made == []
    assert found[0].reused
    assert (found[0].folder / "file").read_text() == "of the first"


def test_the_second_build_makes_the_stage_when_the_first_is_killed(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    made: list[str] = []
    thread, found = obtain_meanwhile(tmp_path, made, [])
    os.kill(other.pid, signal.SIGKILL)
    thread.join(30)
    assert made == ["of the second"]
    assert not found[0].reused
    fill(tmp_path, "one")  # the next build clears up after the killed one
    assert [path.name for path in tmp_path.iterdir()] == [found[0].folder.name]


def test_what_a_running_build_holds_is_not_pruned(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    assert prune(tmp_path, keep=0).removed == []  # it is still making it
    assert other.stdin is not None and other.stdout is not None
    other.stdin.write("\n")
    other.stdin.flush()
    assert other.stdout.readline() == "made\n"
    fill(tmp_path, "two")
    done = prune(tmp_path, keep=0)
    assert [entry.folder.name for entry in done.removed] == [f"graph-{key('two').digest}"]
    assert [entry.in_use for entry in done.held] == [True]
    other.communicate("\n", timeout=30)
    assert len(prune(tmp_path, keep=0).removed) == 1
    assert list(tmp_path.iterdir()) == []


def used(root: Path, days_ago: dict[str, float]) -> None:
    for name, days in days_ago.items():
        at = time.time() - days * 86400
        os.utime(root / f"graph-{key(name).digest}" / "entry.json", (at, at))


def test_pruning_takes_the_longest_unused_first_and_stops_at_the_size_to_keep(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", "c")
    used(tmp_path, {"a": 1, "b": 3, "c": 2})
    assert [entry.folder.name[6:] for entry in list_entries(tmp_path)] == [key(n).digest for n in "acb"]
    size = list_entries(tmp_path)[0].size
    done = prune(tmp_path, keep=2 * size)
    assert [entry.folder.name[6:] for entry in done.removed] == [key("b").digest]
    assert (done.freed, done.left) == (size, 2 * size)
    done = prune(tmp_path, older_than=1.5 * 86400)
    assert [entry.folder.name[6:] for entry in done.removed] == [key("c").digest]


def test_an_entry_that_is_used_counts_as_used_now(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    used(tmp_path, {"a": 100})
    fill(tmp_path, "a")
    assert prune(tmp_path, older_than=86400).removed == []


def test_a_damaged_entry_is_listed_as_such_and_can_be_pruned(tmp_path: Path) -> None:
    (entry,) = fill(tmp_path, "a")
    about = entry.folder / "entry.json"
    for text in ("[]", about.read_text().replace('"created": "2', '"created": "x')):
        about.write_text(text)
        assert [found.stage for found in list_entries(tmp_path)] == ["damaged"]
    assert len(prune(tmp_path, keep=0).removed) == 1


def test_of_a_link_in_the_cache_only_the_link_is_pruned(tmp_path: Path) -> None:
    (entry,) = fill(tmp_path / "cache", "a")
    entry.folder.symlink_to(entry.folder.rename(tmp_path / "elsewhere"))
    assert len(prune(tmp_path / "cache", keep=0).removed) == 1
    assert list((tmp_path / "cache").iterdir()) == []
    assert (tmp_path / "elsewhere" / "file").is_file()


def test_a_changed_copy_does_not_change_the_cache(tmp_path: Path) -> None:
    (entry,) = fill(tmp_path, "a")
    copy = tmp_path / "artifact" / "file"
    copy_file(entry.folder / "file", copy)
    assert copy.read_bytes() == (entry.folder / "file").read_bytes()
    with copy.open("r+b") as stream:
        stream.write(b"changed")
    assert (entry.folder / "file").read_text() == "a" * 1000


def test_a_key_changes_with_versions_and_with_our_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from hermes_deploy.pipeline import keys

    def now() -> str:
        return stage_key("graph", "graph cpu", "tiny", source="x").digest

    before = now()
    assert now() == before
    with monkeypatch.context() as patch:
        patch.setattr(keys, "code_fingerprint", lambda _: "other code")
        assert now() != before
    with monkeypatch.context() as patch:
        patch.setattr(keys, "_versions", lambda _: {"numpy": "0"})
        assert now() != before


def test_the_fingerprint_is_of_the_code_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hermes_deploy.pipeline import keys

    (tmp_path / "room").mkdir()
    source = tmp_path / "room" / "file.py"
    source.write_text("x = 1\n")
    monkeypatch.setattr(keys.resources, "files", lambda _: tmp_path)
    prints = []
    for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
        source.write_text(text)
        prints.append(code_fingerprint.__wrapped__(("room",)))
    assert prints[0] == prints[2] != prints[1]


@pytest.mark.parametrize("stage", ROOMS)
def test_every_room_whose_code_a_stage_runs_is_in_its_key(stage: str) -> None:
    """Rooms that only carry names and errors may change without a stage running again."""
    rooms = set(ROOMS[stage])  # type: ignore[index]
    imported = set().union(*(rooms_imported(path) for path in FILES if room_of(path) in rooms))
    assert imported - rooms <= {"errors", "chat", "machine", "protocol"}
