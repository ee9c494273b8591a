"""The artifact appears by rename: all or nothing, whatever kills the build.

`staged(output)` gives a hidden sibling folder to write into; `publish` renames it to `output`.
Any other way out removes it. A build that was killed cannot clean up: the next build into the same
output removes what it finds unlocked (the lock is on the folder itself and dies with its process).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hermes_deploy.errors import BuildError, UsageError
from hermes_deploy.pipeline.locked_folders import make_locked, remove_abandoned, sync, sync_files


@dataclass(frozen=True)
class Staging:
    folder: Path
    output: Path

    def publish(self) -> None:
        """Makes `output` appear, complete. Raises BuildError when something else took its place."""
        sync_files(self.folder)
        # rename onto an existing folder succeeds only while that folder is empty
        try:
            self.folder.rename(self.output)
        except OSError as error:
            raise BuildError(
                f"{self.output} could not be published: {error.strerror}. Nothing was changed; what is there was put "
                "there during this build. Name another --output: the finished stages are reused."
            ) from None
        sync(self.output.parent)


def check_output(output: Path) -> None:
    """Raises UsageError unless `output` can be created: absent or an empty folder, in a writable one."""
    try:
        str(output).encode()
        output.stat()
    except UnicodeEncodeError:
        raise UsageError(f"--output {str(output)!a} is not UTF-8 text; name another folder") from None
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UsageError(f"--output {output} cannot be used: {error.strerror}; name another folder") from None
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UsageError(f"--output {output} exists and is not a folder; name a new folder")
    if output.is_dir():
        entries = sorted(p.name for p in output.iterdir())
        if entries:
            some = ", ".join(entries[:3]) + (", …" if len(entries) > 3 else "")
            raise UsageError(f"--output {output} is not empty (it holds {some}); name a new folder, or remove it first")
    parent = _existing(output.absolute().parent)
    if not parent.is_dir():
        raise UsageError(f"--output {output}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"--output {output}: {parent} is not writable by this user; name another place")


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Staging]:
    """A locked, empty folder beside `output`, removed on the way out unless it was published."""
    check_output(output)
    # `new/..` is a folder that is there, whatever it looks like
    output = output.resolve()
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{output.name}.building-"
        remove_abandoned(output.parent, prefix)
        folder, lock = make_locked(output.parent, prefix)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be written: {error.strerror} ({error.filename})") from None
    try:
        # mkdtemp makes it private; an artifact is read by the server's user
        folder.chmod(0o755)
        yield Staging(folder, output)
    finally:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
