"""Finished stages, kept by what they depend on: `StageCache`.

An entry is a folder `<stage>-<sha256 of its key>` with the stage's files and `entry.json` (what it
is the result of, in words, and the sha256 of every file). It appears by rename, so a killed build
leaves none that looks finished; it is verified before it is used, and a damaged one is made again.
Several builds may share one cache: the maker of an entry holds a lock that the next one waits for,
and who uses an entry holds its folder until the build ends, so that `prune` leaves it alone.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from hermes_deploy.checkpoints.source import default_cache
from hermes_deploy.errors import BuildError, UsageError
from hermes_deploy.pipeline.keys import StageKey
from hermes_deploy.pipeline.locked_folders import lock_folder, make_locked, remove_abandoned, sync, sync_files
from hermes_deploy.repository.manifest import FileEntry, hash_file, list_files

ENTRY = "entry.json"
MAKING = ".making-"
LOCK = ".lock"


def _instant(text: str) -> str:
    datetime.datetime.fromisoformat(text).timestamp()
    return text


class EntryFile(BaseModel):
    """entry.json. `parts`: what the key is made of. `created`: UTC, ISO 8601. `files`: all but entry.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int = 1
    stage: str
    name: str
    model: str
    key: str
    parts: dict[str, Any]
    created: Annotated[str, AfterValidator(_instant)]
    files: dict[str, FileEntry]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class Entry:
    """A verified entry that this build holds. `reused`: it was there; nothing was made."""

    folder: Path
    about: EntryFile
    reused: bool


def stages_folder() -> Path:
    """$HERMES_DEPLOY_STAGES, else `stages` in the cache folder ($HERMES_DEPLOY_CACHE, ~/.cache/hermes-deploy).

    Raises UsageError for what is no path.
    """
    chosen = os.environ.get("HERMES_DEPLOY_STAGES")
    if not chosen:
        return default_cache() / "stages"
    try:
        chosen.encode()
        return Path(chosen).expanduser()
    except (UnicodeEncodeError, RuntimeError) as error:
        trouble = "is not UTF-8 text" if isinstance(error, UnicodeEncodeError) else "names the home of nobody here"
        raise UsageError(f"HERMES_DEPLOY_STAGES={chosen!a} {trouble}; name a folder by its full path") from None


Note = Callable[[str], None]
"""Hears, in words, what a person should know: damage, and waiting for another build."""


class StageCache:
    """Use it as a context manager: entries are held until its end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: list[int] = []

    def __enter__(self) -> StageCache:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.root, MAKING)
        except OSError as error:
            raise BuildError(
                f"the stage cache {self.root} cannot be written: {error.strerror} ({error.filename}). Name another "
                "folder in HERMES_DEPLOY_STAGES, or build with --no-cache."
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        while self._held:
            os.close(self._held.pop())

    def place(self, key: StageKey) -> Path:
        return self.root / f"{key.stage}-{key.digest}"

    def has(self, key: StageKey) -> bool:
        """Whether there is an entry; `obtain` may still find it damaged."""
        return (self.place(key) / ENTRY).is_file()

    def obtain(self, key: StageKey, make: Callable[[Path], None], note: Note = lambda _: None) -> Entry:
        """The entry of `key`: the one that is there, or what `make` writes into the folder that it is given.

        Waits while another build makes the same; makes it itself if that one dies. What `make`
        raises passes through, and nothing of it stays.
        """
        entry, _ = self._use(key)
        if entry is not None:
            return entry
        with self._only_maker(key, note):
            entry, damage = self._use(key)
            if entry is not None:
                return entry
            if damage:
                note(f"{self.place(key)} is damaged ({damage}); it is removed and made again")
                remove_entry(self.place(key))
            return self._make(key, make)

    def _use(self, key: StageKey) -> tuple[Entry | None, str]:
        """The entry, held and verified; or None and what is wrong with it, "" when there is none."""
        place = self.place(key)
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            return None, "it is not a folder"
        lock = lock_folder(place, fcntl.LOCK_SH)
        if lock is None:
            return None, ""
        try:
            about, damage = _verify(place, key.digest)
            # what was locked may have been pruned while we waited for it
            if about is None or not place.exists() or not _same(lock, place):
                os.close(lock)
                return None, damage
            os.utime(place / ENTRY)  # last used
        except BaseException:
            os.close(lock)
            raise
        self._held.append(lock)
        return Entry(place, about, reused=True), ""

    def _make(self, key: StageKey, make: Callable[[Path], None]) -> Entry:
        folder, lock = make_locked(self.root, MAKING)
        try:
            make(folder)
            files = {name: hash_file(folder / name) for name in list_files(folder)}
            about = EntryFile(
                stage=key.stage,
                name=key.name,
                model=key.model,
                key=key.digest,
                parts=dict(key.parts),
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                files=files,
            )
            text = json.dumps(about.model_dump(), indent=2, sort_keys=True, ensure_ascii=False)
            (folder / ENTRY).write_text(text + "\n", encoding="utf-8")
            sync_files(folder)
            # held as its users hold it, from its first moment on
            fcntl.flock(lock, fcntl.LOCK_SH)
            folder.rename(self.place(key))
            sync(self.root)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
            raise
        self._held.append(lock)
        return Entry(self.place(key), about, reused=False)

    @contextlib.contextmanager
    def _only_maker(self, key: StageKey, note: Note) -> Iterator[None]:
        path = self.place(key).with_name(self.place(key).name + LOCK)
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    note("another build is making the same; waiting for it")
                    fcntl.flock(lock, fcntl.LOCK_EX)
                # the one before removed the file that we waited on
                if not (path.exists() and _same(lock, path)):
                    continue
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
            finally:
                os.close(lock)


def _same(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        named = path.stat()
    except OSError:
        return False
    ours = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)


def remove_entry(place: Path) -> None:
    """A folder with all that is in it; of a link or a file in its place, that alone."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink()


def read_entry(folder: Path) -> EntryFile:
    """Raises OSError or ValueError (pydantic's is one) where entry.json is not whole."""
    return EntryFile.model_validate_json((folder / ENTRY).read_bytes())


def _verify(folder: Path, digest: str) -> tuple[EntryFile | None, str]:
    """What entry.json says when every file is as it says, else None and the first difference."""
    try:
        about = read_entry(folder)
        if about.key != digest:
            return None, f"{ENTRY} is of another key"
        found = set(list_files(folder)) - {ENTRY}
        if found != set(about.files):
            return None, f"{sorted(found ^ set(about.files))[0]} is missing or not named"
        for name, entry in about.files.items():
            if (folder / name).is_symlink() or not (folder / name).is_file():
                return None, f"{name} is not a regular file"
            if hash_file(folder / name) != entry:
                return None, f"the bytes of {name} have changed"
    except ValidationError as error:
        return None, f"{ENTRY}: {error.errors(include_url=False)[0]['msg']}"
    except OSError as error:
        return None, f"{error.filename}: {error.strerror}"
    return about, ""
