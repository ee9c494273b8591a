"""How much memory and disk this machine has left, now. Linux; reads /proc, /sys and file systems.

The memory is the least of what the machine has and what the control groups around this process
allow: a container is often given less than the machine shows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Room:
    """`free` bytes; `where` says in words what bounds them. `device` tells file systems apart."""

    free: int
    where: str
    device: int = 0


def free_memory(meminfo: Path = Path("/proc/meminfo"), own: Path = Path("/proc/self/cgroup")) -> Room:
    """Bytes that this process and its children can still take without swapping."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    room = Room(int(lines["MemAvailable"].split()[0]) * 1024, "of this machine's memory")
    for folder in _groups(own):
        left = _left(folder)
        if left is not None and left < room.free:
            room = Room(left, f"of the memory limit of this container or control group ({folder}/memory.max)")
    return room


def free_disk(place: Path) -> Room:
    """Bytes that this user can still write at `place`, or where it will be made."""
    while not place.exists() and place != place.parent:
        place = place.parent
    facts = os.statvfs(place)
    return Room(facts.f_bavail * facts.f_frsize, f"on the file system of {place}", place.stat().st_dev)


def _groups(own: Path) -> list[Path]:
    """Folders of the control group (version 2) of this process and of all around it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    names = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    folders = []
    for name in names:
        folder = _CGROUPS / name.lstrip("/")
        folders += [folder, *(parent for parent in folder.parents if parent.is_relative_to(_CGROUPS))]
    return folders


def _left(folder: Path) -> int | None:
    """Limit less use, without the page cache that the kernel takes back; None for no limit."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max":
            return None
        current = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # the root group has none, and a container may hide the groups around it
        return None
    return int(limit) - (current - int(stat.get("inactive_file", 0)))
