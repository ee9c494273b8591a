"""verify_files says every way in which an artifact is not as it was built."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hermes_deploy.errors import ArtifactError
from hermes_deploy.repository import manifest
from hermes_deploy.repository.demo import demo_config
from hermes_deploy.repository.manifest import read_manifest, verify_files
from tests.serving.artifact import seal


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one").write_text("one")
    (tmp_path / "two").write_text("two")
    seal(tmp_path, demo_config())
    return tmp_path


def problems(artifact: Path) -> list[str]:
    return verify_files(artifact, read_manifest(artifact))


def test_an_untouched_artifact_has_no_problems(artifact: Path) -> None:
    assert problems(artifact) == []


def test_each_change_is_named(artifact: Path) -> None:
    (artifact / "a/one").write_text("0ne")
    (artifact / "three").write_text("three")
    (artifact / "two").unlink()
    assert problems(artifact) == [
        "two: missing",
        "three: not named in the manifest",
        "a/one: sha256 differs from the manifest",
    ]


def test_a_file_that_grew_and_a_link_in_place_of_a_file_are_named(artifact: Path) -> None:
    (artifact / "a/one").write_text("one more")
    (artifact / "two").rename(artifact.parent / "elsewhere")
    (artifact / "two").symlink_to(artifact.parent / "elsewhere")
    assert problems(artifact) == [
        "a/one: size is 8, manifest says 3",
        "two: is a symbolic link; the build wrote a regular file",
    ]


def test_a_pipe_is_named_wherever_it_lies_and_never_read(artifact: Path) -> None:
    os.mkfifo(artifact / "a/pipe")
    (artifact / "two").unlink()
    os.mkfifo(artifact / "two")
    assert problems(artifact) == ["a/pipe: not named in the manifest", "two: is not a regular file"]


def test_a_file_that_may_not_be_read_is_named_with_the_reason(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:  # root may read everything
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(manifest, "hash_file", denied)
    assert problems(artifact) == [
        "a/one: cannot be read: Permission denied",
        "two: cannot be read: Permission denied",
    ]


def test_a_folder_that_may_not_be_read_is_not_called_missing(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def denied(path: str | Path) -> object:
        if Path(path).name == "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert problems(artifact) == ["a: cannot be read: Permission denied"]


def test_a_file_in_place_of_the_folder_is_no_artifact(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a hermes-deploy artifact"):
        read_manifest(artifact / "two")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a hermes-deploy artifact"),
        ("{", "cannot be read"),
        ("[]", "is damaged: the whole: "),
        ("[" * 100_000, "cannot be read: maximum recursion"),
        ('{"schema_version": 99}', "schema_version 99; this version reads 2"),
        ('{"schema_version": 1}', "schema_version 1; this version reads 2"),
        ('{"schema_version": 2}', "is damaged: model"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_manifest(tmp_path)
