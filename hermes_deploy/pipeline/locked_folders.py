"""Folders that say whether their maker lives: a lock on the folder itself, which dies with its process.

What a killed build leaves behind is a folder that nobody holds; anyone may remove it. The lock
belongs to the folder and not to its name: it stays when the folder is renamed.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
from pathlib import Path


def make_locked(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new, empty folder and the descriptor that holds it; closing that, or dying, lets it go."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = lock_folder(folder)
        # between the two lines another build may have taken it for abandoned
        if lock is not None and folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def lock_folder(folder: Path, mode: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> int | None:
    """A descriptor that holds `folder`, or None while another holds it (or it is gone)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, mode)
    except OSError:
        os.close(descriptor)
        return None
    except BaseException:  # Ctrl-C while waiting
        os.close(descriptor)
        raise
    return descriptor


def remove_abandoned(parent: Path, prefix: str) -> list[Path]:
    """Removes the folders of killed builds; gives what was removed."""
    removed = []
    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        lock = lock_folder(folder)
        if lock is None:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        removed.append(folder)
    return removed


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's list of names, lie on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """The same for every file below `folder`."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
