"""Whether the files that a server loaded are still the ones that were verified.

ONNX Runtime maps the weights: bytes that are written into the file come into the answers, and a file that is cut short
kills the process. Nothing short of a copy in memory prevents that, so it is seen instead. What is at a path is known by
its inode, size and times, which no write leaves as they were; bytes are read again only where one of those changed.

    before = identities(artifact)       before the files are hashed
    hold_loaded(artifact, before, ...)  after the engine has loaded them: was that what was hashed?
    LoadedFiles.look()                  while it runs
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hermes_deploy.errors import ArtifactError
from hermes_deploy.repository.manifest import FileEntry, hash_stream


@dataclass(frozen=True)
class Identity:
    """`times`: of the last write and of the last change of any kind, in nanoseconds; nobody can set the second."""

    device: int
    inode: int
    size: int
    times: tuple[int, int]


def identities(artifact: Path) -> dict[str, Identity]:
    """Of the artifact's files and folders, by their path in it, "." for itself. What cannot be read is left out."""
    found = {}
    for root, _, files in os.walk(artifact):
        for path in (Path(root), *(Path(root, name) for name in files)):
            with suppress(OSError):
                found[str(path.relative_to(artifact))] = _identity(path.lstat())
    return found


def changes(artifact: Path, before: Mapping[str, Identity]) -> list[str]:
    """Each file that is not the same any more, and how; folders where only they changed."""
    now = identities(artifact)
    told = {name: _how(was, now.get(name)) for name, was in before.items() if now.get(name) != was}
    told |= dict.fromkeys(now.keys() - before.keys(), "was added")
    files = {name: how for name, how in told.items() if not (artifact / name).is_dir()} or told
    return [f"{name} {how}" for name, how in sorted(files.items())]


def _how(was: Identity, now: Identity | None) -> str:
    if now is None:
        return "was removed"
    if (now.device, now.inode) != (was.device, was.inode):
        return "was replaced"
    return f"has {now.size} bytes instead of {was.size}" if now.size != was.size else "was written to"


def _identity(found: os.stat_result) -> Identity:
    return Identity(found.st_dev, found.st_ino, found.st_size, (found.st_mtime_ns, found.st_ctime_ns))


@dataclass(frozen=True)
class FilesLook:
    """`problem`: why answers cannot be vouched for, None when they can; `fatal`: the bytes are known to be others.

    `news`: what should be told once: the artifact is not what it was, but what was loaded is.
    """

    problem: str | None = None
    fatal: bool = False
    news: str | None = None


class LoadedFiles:
    """`mapped`: entries of the manifest of the files that the engine may have mapped. They are held open: one that is
    replaced or removed in the folder is still the engine's, and is still looked at.

    Raises OSError where one cannot be opened.
    """

    def __init__(self, artifact: Path, before: Mapping[str, Identity], mapped: Mapping[str, FileEntry]) -> None:
        self._artifact = artifact
        self._before = dict(before)
        self._mapped = dict(mapped)
        self._held: dict[str, int] = {}
        self._seen = {name: before[name] for name in mapped}
        self._told: list[str] = []
        self._reading: threading.Thread | None = None
        self._damaged: list[str] = []
        try:
            for name in mapped:
                self._held[name] = os.open(artifact / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.close()
            raise

    def look(self) -> FilesLook:
        """Takes no time: bytes are read in a thread, and until they are, there is a problem that is not fatal."""
        if self._damaged:
            return FilesLook(f"files of {self._artifact} were changed under the running server: {self._list()}", True)
        if self._reading is not None:
            if self._reading.is_alive():
                return FilesLook(f"files of {self._artifact} were touched and are being compared with the manifest")
            self._reading = None
        touched = {}
        for name, descriptor in self._held.items():
            now = _identity(os.fstat(descriptor))
            if now.size != self._mapped[name].size:
                self._damaged.append(f"{name} has {now.size} bytes instead of {self._mapped[name].size}")
            elif now != self._seen[name]:
                touched[name] = now
        if self._damaged:
            return self.look()
        if touched:
            self._reading = threading.Thread(target=self._compare, args=(touched,), name="compare", daemon=True)
            self._reading.start()
            return self.look()
        return FilesLook(news=self._news())

    def close(self) -> None:
        if self._reading is not None:
            self._reading.join()
            self._reading = None
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def _compare(self, touched: Mapping[str, Identity]) -> None:
        for name, now in touched.items():
            with open(self._held[name], "rb", closefd=False) as stream:
                stream.seek(0)
                same = hash_stream(stream) == self._mapped[name]
            if same:
                self._seen[name] = now
            else:
                self._damaged.append(f"{name} was written to")

    def _news(self) -> str | None:
        told = changes(self._artifact, self._before)
        if not told or told == self._told:
            return None
        self._told = told
        return (
            f"{self._artifact} is not what was verified: {_some(told)}. The running server goes on with what it has "
            "loaded, which is unchanged; a new start verifies again. Another artifact belongs into a folder of its own"
        )

    def _list(self) -> str:
        return _some(self._damaged)


def hold_loaded(artifact: Path, before: Mapping[str, Identity], mapped: Mapping[str, FileEntry]) -> LoadedFiles:
    """After they were loaded. Raises ArtifactError when they changed since `before`: it may be something else."""
    told = changes(artifact, before)
    if not told:
        with suppress(FileNotFoundError):
            return LoadedFiles(artifact, before, mapped)
        told = ["a file of the engine was removed"]
    raise ArtifactError(
        f"{artifact} was changed while it was being verified and loaded, so it is not served: {_some(told)}. "
        "Serve it again when nothing writes into it; another artifact belongs into a folder of its own."
    )


def _some(told: Iterable[str]) -> str:
    shown = list(told)
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return ", ".join(shown[:3]) + more
