"""TCP ports before the server takes them: free or not, and who has them."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
from pathlib import Path

from hermes_deploy.errors import ServeError, UsageError

_MOST_FILES = 1 << 16


def resolve_host(host: str) -> str:
    """The IPv4 address of `host`: Triton takes addresses, no names. Raises UsageError."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise UsageError(
            f"host {host!r} is no IPv4 address or name ({error.strerror}); "
            "use 127.0.0.1 for this machine only, 0.0.0.0 for every interface"
        ) from None
    return str(found[0][4][0])


def allow_connections() -> None:
    """Lets this process and those that it starts have as many open files as the system allows, 65,536 at most.

    Shells and services often give 1,024, which as many connections use up.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def claim_ports(host: str, ports: dict[str, int]) -> dict[str, int]:
    """The same ports, with a free one for each 0. `ports`: what it is for -> number; `host`: IPv4 address.

    Raises ServeError for one that is in use, naming its owner where this user may know;
    UsageError for two that are the same or an address that is not this machine's.
    """
    chosen: dict[str, int] = {}
    held: list[socket.socket] = []
    try:
        # 0 last: a free port must not be one that was asked for
        for what, port in sorted(ports.items(), key=lambda item: item[1] == 0):
            if port and port in chosen.values():
                other = next(name for name, number in chosen.items() if number == port)
                raise UsageError(f"{what} and {other} ports are both {port}; give each its own")
            held.append(_bind(host, port, what))
            chosen[what] = held[-1].getsockname()[1]
    finally:
        for taken in held:
            taken.close()
    return {what: chosen[what] for what in ports}


def _bind(host: str, port: int, what: str) -> socket.socket:
    taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a closed one's leftovers do not count
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        if isinstance(error, PermissionError):
            raise ServeError(f"{what} port {port} needs root (below 1024); choose a higher one") from None
        if error.errno != errno.EADDRINUSE:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --host") from None
        owner = port_owner(port)
        by = f" by {owner}" if owner else ""
        raise ServeError(f"{what} port {port} is in use{by}; stop that, or choose another --{what}-port") from None
    return taken


def port_owner(port: int) -> str | None:
    """`name (pid N)` of the process that listens on `port`, where /proc shows it to this user."""
    inodes = _listening_inodes(port)
    for process in Path("/proc").iterdir() if inodes else ():
        if process.name.isdigit() and inodes & _open_files(process):
            return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


def _open_files(process: Path) -> set[str]:
    """Link targets of its descriptors; empty for another user's process."""
    found = set()
    try:
        for handle in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.add(str(handle.readlink()))
    except OSError:
        return set()
    return found


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net") / table
        if not path.exists():
            continue
        for line in path.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A = LISTEN
                found.add(f"socket:[{fields[9]}]")
    return found
