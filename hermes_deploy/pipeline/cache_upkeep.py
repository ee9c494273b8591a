"""What lies in the stage cache, and making room in it. Never takes what a running build holds."""

from __future__ import annotations

import datetime
import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hermes_deploy.errors import BuildError
from hermes_deploy.pipeline.cache import ENTRY, LOCK, MAKING, read_entry, remove_entry
from hermes_deploy.pipeline.locked_folders import lock_folder, remove_abandoned


@dataclass(frozen=True)
class CacheEntry:
    """`size` in bytes; `created` and `used` (last) in seconds since 1970. `stage` "damaged": entry.json is not
    whole. `in_use`: a running build holds it."""

    folder: Path
    stage: str
    name: str
    model: str
    size: int
    created: float
    used: float
    in_use: bool


@dataclass(frozen=True)
class Pruned:
    """`held`: entries that would have gone, were they not in use. Sizes in bytes."""

    removed: list[CacheEntry]
    held: list[CacheEntry]
    freed: int
    left: int


def list_entries(root: Path) -> list[CacheEntry]:
    """Every entry, the one used last first. No folder, no entries. Raises BuildError where it cannot be read."""
    try:
        folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return sorted((entry for path in folders if (entry := _entry(path))), key=lambda entry: -entry.used)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BuildError(f"the stage cache {root} cannot be read: {error.strerror} ({error.filename})") from None


def prune(
    root: Path, *, older_than: float | None = None, keep: int | None = None, now: Callable[[], float] = time.time
) -> Pruned:
    """Removes entries last used more than `older_than` seconds ago, then the longest unused until at most `keep`
    bytes are left. What killed builds left goes too. Both None: removes nothing else."""
    if root.is_dir():
        remove_abandoned(root, MAKING)
        _remove_locks(root)
    entries = list_entries(root)
    left = sum(entry.size for entry in entries)
    removed: list[CacheEntry] = []
    held: list[CacheEntry] = []
    for entry in reversed(entries):
        old = older_than is not None and now() - entry.used > older_than
        if not old and (keep is None or left <= keep):
            continue
        if _remove(entry.folder):
            removed.append(entry)
            left -= entry.size
        else:
            held.append(entry)
    return Pruned(removed, held, freed=sum(entry.size for entry in removed), left=left)


def _entry(folder: Path) -> CacheEntry | None:
    """None when it is gone by now."""
    lock = lock_folder(folder)
    if lock is not None:
        os.close(lock)
    try:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        seen = folder.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        about = read_entry(folder)
        used = (folder / ENTRY).stat().st_mtime
    except (OSError, ValueError):
        return CacheEntry(folder, "damaged", folder.name, "", size, seen, seen, lock is None)
    created = datetime.datetime.fromisoformat(about.created).timestamp()
    return CacheEntry(folder, about.stage, about.name, about.model, size, created, used, lock is None)


def _remove(folder: Path) -> bool:
    """False when a running build holds it."""
    lock = lock_folder(folder)
    if lock is None:
        return not folder.exists()
    try:
        remove_entry(folder)
    finally:
        os.close(lock)
    return True


def _remove_locks(root: Path) -> None:
    """Lock files whose maker was killed. One that is held stays; who waits on a removed one looks again."""
    for path in root.glob(f"*{LOCK}"):
        try:
            lock = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
