"""Memory of a process tree by PSS, with the KV cache counted once and all of it. Linux.

PSS shares a page between all that map it. The cache of a CPU session is one anonymous memory file
(`runtime/sessions/cache_memory.py`) that is mapped several times over: a page that no mapping has touched since its
view went is in nobody's PSS and in memory all the same. So the file's mappings are taken out of the sum and
what the system has handed out for the file is put in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hermes_deploy.benchmarking.listening import NotMeasured

_CACHE = "memfd:hermes-kv"
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)$")


@dataclass(frozen=True)
class TreeMemory:
    """Bytes. `pss`: of all processes, as the kernel says; `cache_pss`: the part of it that is the cache's
    mappings; `cache_used`: what the cache really has. `processes`: (name, PSS) of each."""

    pss: int
    cache_pss: int
    cache_used: int
    processes: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return self.pss - self.cache_pss + self.cache_used


def memory_of(processes: list[int]) -> TreeMemory:
    """Of these processes. Raises NotMeasured where the system does not tell."""
    found, caches = [], dict[tuple[int, int], int]()
    cache_pss = 0
    for pid in processes:
        try:
            pss, cache = _pss(pid)
            caches |= _cache_files(pid)
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended, and so has its memory
        except PermissionError as error:
            raise NotMeasured(f"{error.filename} cannot be read: {error.strerror}") from None
        found.append((name, pss))
        cache_pss += cache
    return TreeMemory(sum(pss for _, pss in found), cache_pss, sum(caches.values()), tuple(found))


def descendants(pid: int) -> list[int]:
    """All processes below `pid` that are alive, without itself."""
    found, todo = [], [pid]
    while todo:
        for task in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            try:
                children = [int(child) for child in task.read_text(encoding="utf-8").split()]
            except OSError:
                continue  # the thread has just ended
            found += children
            todo += children
    return found


def _pss(pid: int) -> tuple[int, int]:
    """(all, of the cache's mappings), bytes."""
    every = cache = 0
    of_cache = False
    with Path(f"/proc/{pid}/smaps").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("Pss:"):
                size = int(line.split()[1]) * 1024
                every += size
                cache += size if of_cache else 0
            elif mapping := _MAPPING.match(line):
                of_cache = _CACHE in mapping[1]
    return every, cache


def _cache_files(pid: int) -> dict[tuple[int, int], int]:
    """(device, inode) of each cache file that `pid` holds -> bytes that it has in memory."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if _CACHE in str(link.readlink()):
                status = link.stat()
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
        except FileNotFoundError:
            continue  # it was closed in the meantime
    return found
