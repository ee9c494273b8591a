"""Text that remembers which of its characters the chat template wrote, and which came from a message. Pure.

A control token in a prompt is one only where the template wrote every character of it. So the
template's own texts are `TracedText`, a `str` in every respect; what is joined, cut, stripped or
replaced keeps count. An operation that is not followed here gives a plain `str`, which is nobody's:
trust is lost by mistake, never gained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

_RUN = re.compile(rb"\x01+")


class TracedText(str):
    """`own`: one byte a character, 1 where the template wrote it; not given = it wrote all."""

    __slots__ = ("_own",)
    _own: bytes

    def __new__(cls, text: str, own: bytes | None = None) -> TracedText:
        traced = super().__new__(cls, text)
        traced._own = b"\x01" * len(text) if own is None else own
        return traced

    def __str__(self) -> TracedText:
        # jinja writes every value through str(), which would otherwise forget
        return self

    def __add__(self, other: str) -> TracedText:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> TracedText:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: SupportsIndex | slice) -> TracedText:
        text = super().__getitem__(key)
        return TracedText(text, self._own[key] if isinstance(key, slice) else bytes((self._own[key],)))

    def strip(self, chars: str | None = None) -> TracedText:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> TracedText:
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None) -> TracedText:
        return self[: len(super().rstrip(chars))]

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        text = super().replace(old, new, count)
        if not old:
            return text
        kept, at = [], 0
        for part in super().split(old, count):
            kept.append(self._own[at : at + len(part)])
            at += len(part) + len(old)
        return TracedText(text, _own(new).join(kept))

    def join(self, items: Iterable[str]) -> TracedText:
        return joined(items, self)

    def upper(self) -> str:
        return self._same_length(super().upper())

    def lower(self) -> str:
        return self._same_length(super().lower())

    def capitalize(self) -> str:
        return self._same_length(super().capitalize())

    def _same_length(self, text: str) -> str:
        return TracedText(text, self._own) if len(text) == len(self) else text


def joined(items: Iterable[Any], between: str = "") -> TracedText:
    """`between.join(items)`, traced."""
    texts = list(items)
    return TracedText(str.join(between, texts), _own(between).join(map(_own, texts)))


def own_runs(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of every longest stretch that the template wrote."""
    return (run.span() for run in _RUN.finditer(_own(text)))


def _own(text: str) -> bytes:
    return text._own if isinstance(text, TracedText) else bytes(len(text))
