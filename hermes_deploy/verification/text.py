"""Token ids as text for people, with or without a tokenizer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from hermes_deploy.verification.result import Choice


class Decodes(Protocol):
    """What is needed of `chat.ChatTokenizer`."""

    def decode(self, ids: Iterable[int]) -> str: ...


def text_of(tokenizer: Decodes | None, ids: Sequence[int]) -> str:
    """The ids as text; what has no text, and everything without a tokenizer, as `<id>`."""
    text = "" if tokenizer is None else tokenizer.decode(ids)
    return text or " ".join(f"<{token}>" for token in ids)


def choices_of(tokenizer: Decodes | None, choices: Sequence[tuple[int, float]]) -> tuple[Choice, ...]:
    """(token id, probability) as (text, probability)."""
    return tuple((text_of(tokenizer, [token]), share) for token, share in choices)
