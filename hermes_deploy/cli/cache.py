"""`hermes-deploy cache list` and `cache prune`: what earlier builds left to be used again."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from typing import Annotated

import typer

cache = typer.Typer(
    name="cache",
    help="Finished stages of earlier builds, kept to be used again: list them, or make room.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@cache.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Every stage in the cache: of which model, how large, how old, when last used."""
    from hermes_deploy.pipeline.cache import stages_folder
    from hermes_deploy.pipeline.cache_upkeep import list_entries

    root = stages_folder()
    entries = list_entries(root)
    total = sum(entry.size for entry in entries)
    if as_json:
        rows = [dataclasses.asdict(entry) for entry in entries]
        print(json.dumps({"folder": str(root), "size": total, "entries": rows}, default=str, ensure_ascii=False))
        return
    now = time.time()
    if entries:
        print(f"{'stage':<28} {'model':<32} {'size':>10}  {'made':>8}  {'used':>8}")
    for entry in entries:
        print(
            f"{_plain(entry.name):<28} {_plain(entry.model):<32} {_size(entry.size):>10}  "
            f"{_ago(now - entry.created):>8}  {_ago(now - entry.used):>8}{'  in use' if entry.in_use else ''}"
            f"{'  damaged' if entry.stage == 'damaged' else ''}"
        )
    print(f"{len(entries)} stages, {_size(total)}, in {root}")


@cache.command("prune")
def prune_(
    older_than: Annotated[
        str | None, typer.Option(help="Remove what was last used longer ago than this: 12h, 30d, 8w.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Then remove the longest unused until this much is left: 20GB, 500MB.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove everything that no running build holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Makes room in the cache. What a running build holds stays; downloads are not touched.

    Example: hermes-deploy cache prune --older-than 30d --keep 20GB
    """
    from hermes_deploy.errors import UsageError
    from hermes_deploy.pipeline.cache import stages_folder
    from hermes_deploy.pipeline.cache_upkeep import prune

    if everything == (older_than is not None or keep is not None):
        raise UsageError("say what to remove: --older-than 30d, --keep 20GB, or both; or --all alone")
    done = prune(
        stages_folder(),
        older_than=None if older_than is None else parse_duration(older_than),
        keep=0 if everything else None if keep is None else parse_size(keep),
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(done), default=str, ensure_ascii=False))
        return
    for entry in done.removed:
        print(f"removed {_plain(entry.name):<28} {_plain(entry.model):<32} {_size(entry.size):>10}")
    for entry in done.held:
        print(f"in use, kept: {_plain(entry.name)} of {_plain(entry.model)}, {_size(entry.size)}")
    print(f"freed {_size(done.freed)}; {_size(done.left)} left")


def parse_duration(text: str) -> float:
    """ "30d" -> seconds. Raises UsageError."""
    from hermes_deploy.errors import UsageError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if found is None:
        raise UsageError(f"{text!r} is no length of time; write a number and one of s, m, h, d, w, such as 30d")
    return float(found[1]) * _UNITS[found[2]]


def parse_size(text: str) -> int:
    """ "20GB" -> bytes. Raises UsageError."""
    from hermes_deploy.errors import UsageError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if found is None or found[2].upper() not in _SIZES:
        raise UsageError(f"{text!r} is no size; write a number and one of KB, MB, GB, TB, KiB, MiB, GiB, such as 20GB")
    return int(float(found[1]) * _SIZES[found[2].upper()])


def _plain(text: str) -> str:
    """Without what would move a terminal's cursor or break the table: names come from folders of others."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _size(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 10**9 else f"{size / 1e6:,.1f} MB"


def _ago(seconds: float) -> str:
    for unit in ("w", "d", "h", "m"):
        if seconds >= 2 * _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
