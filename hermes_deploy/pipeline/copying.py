"""From the cache into the artifact: a copy that shares no bytes that a later change could reach.

Where the file system can (btrfs, XFS, bcachefs), the copy is a reflink: at once, and without a
second lot of disk until one of the two changes. Never a hard link, which would be one file twice.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
from pathlib import Path

_FICLONE = 0x40049409
"""linux/fs.h: _IOW(0x94, 9, int)."""

_CANNOT = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM)


def copy_file(source: Path, place: Path) -> None:
    """Writes the bytes of `source` as the new file `place`; makes its folder."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reading, place.open("xb") as writing:
        try:
            fcntl.ioctl(writing, _FICLONE, reading.fileno())
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            shutil.copyfileobj(reading, writing, 4 << 20)
