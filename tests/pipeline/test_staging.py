"""The artifact appears by rename, or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hermes_deploy.errors import BuildError, UsageError
from hermes_deploy.pipeline.locked_folders import remove_abandoned
from hermes_deploy.pipeline.staging import check_output, staged


def siblings(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_nothing_stands_at_the_output_until_it_is_published(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "artifact"
    with staged(output) as staging:
        (staging.folder / "file").write_text("x")
        assert not output.exists()
        staging.publish()
    assert siblings(output) == ["file"]
    assert siblings(output.parent) == ["artifact"]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "artifact") as staging:
        (staging.folder / "file").write_text("x")
        _ = 1 / 0
    assert siblings(tmp_path) == []


def test_an_empty_folder_is_accepted_and_a_full_one_refused_by_name(tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    output.mkdir()
    check_output(output)
    (output / "precious.txt").write_text("x")
    with pytest.raises(UsageError, match=r"not empty \(it holds precious.txt\)"):
        check_output(output)


@pytest.mark.parametrize("output", ["/proc/artifact", "/dev/null/artifact", "/tmp/" + 300 * "a", "odd \udcff"])
def test_an_output_that_cannot_be_written_is_refused(output: str) -> None:
    with pytest.raises(UsageError, match="--output"), staged(Path(output)):
        pass


def test_an_output_that_leads_back_to_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(UsageError, match=r"not empty \(it holds precious.txt\)"), staged(tmp_path / "new" / ".."):
        pass
    assert siblings(tmp_path) == ["precious.txt"]


def test_a_file_in_the_place_of_the_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "artifact").write_text("x")
    with pytest.raises(UsageError, match="not a folder"):
        check_output(tmp_path / "artifact")


def test_two_builds_into_one_output_do_not_mix(tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    with staged(output) as first, staged(output) as second:
        (first.folder / "who").write_text("first")
        (second.folder / "who").write_text("second")
        first.publish()
        with pytest.raises(BuildError, match="could not be published"):
            second.publish()
    assert (output / "who").read_text() == "first"
    assert siblings(tmp_path) == ["artifact"]


@pytest.mark.parametrize("name", ["artifact", "an [odd] *"])
def test_what_a_killed_build_left_is_removed_by_the_next_and_a_living_one_is_not(name: str, tmp_path: Path) -> None:
    output = tmp_path / name
    script = (
        "import sys, time; from pathlib import Path; from hermes_deploy.pipeline.staging import staged\n"
        "with staged(Path(sys.argv[1])) as s: (s.folder / 'half').write_text('x'); print('in', flush=True);"
        " time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(output)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert remove_abandoned(tmp_path, f".{name}.building-") == []
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert len(siblings(tmp_path)) == 1
    assert not output.exists()
    with staged(output) as staging:
        staging.publish()
    assert siblings(tmp_path) == [name]
