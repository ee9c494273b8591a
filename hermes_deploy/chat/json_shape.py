"""How much structure a JSON text has, counted without parsing it. Pure; a few passes in C: 5 ms a MB.

A recursive parser takes a level of the stack for each level of nesting, and memory for each value, before anybody can
look at what it made. So both are counted first. For text that is no JSON the counts are right up to the first mistake,
and no parser gets further than that.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_deploy.errors import RequestError

_BRACKETS = b"[]{}"
_OTHERS = bytes(set(range(256)) - set(_BRACKETS))


@dataclass(frozen=True)
class Shape:
    """At most so many strings (keys are strings as well), arrays and objects, levels of nesting."""

    strings: int
    containers: int
    depth: int


def check_shape(data: bytes, most: Shape, what: str) -> None:
    """Raises RequestError, which names `what`, for JSON that has more of anything than `most`."""
    # pairs first, from the left, as a parser reads them: what is left of a run of backslashes escapes what follows
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = plain.count(b'"') // 2
    if strings > most.strings:
        raise RequestError(f"{what} has {strings} strings; at most {most.strings} are taken")
    brackets = b"".join(plain.split(b'"')[::2]).translate(None, _OTHERS)
    containers = brackets.count(b"[") + brackets.count(b"{")
    if containers > most.containers:
        raise RequestError(f"{what} has {containers} arrays and objects; at most {most.containers} are taken")
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > most.depth:
            raise RequestError(f"{what} is nested more than {most.depth} levels deep; no more are taken")
