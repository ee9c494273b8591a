"""Where answers differ most, as text that a person can read: the worst position of the worst chats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from hermes_deploy.verification.measures import Comparison
from hermes_deploy.verification.reference import Reference
from hermes_deploy.verification.result import Choice, Excerpt

CHATS = 6
"""How many are shown."""

_BEFORE, _AFTER = 48, 12
"""Tokens of the text around a position that are shown."""


class Decodes(Protocol):
    """What is needed of `chat.ChatTokenizer`."""

    def decode(self, ids: Iterable[int]) -> str: ...


def text_of(tokenizer: Decodes | None, ids: Sequence[int]) -> str:
    """The ids as text; what has no text, and everything without a tokenizer, as `<id>`."""
    text = "" if tokenizer is None else tokenizer.decode(ids)
    return text or " ".join(f"<{token}>" for token in ids)


def choices_of(tokenizer: Decodes | None, choices: Sequence[tuple[int, float]]) -> tuple[Choice, ...]:
    return tuple((text_of(tokenizer, [token]), share) for token, share in choices)


def excerpts(comparison: Comparison, reference: Reference, tokenizer: Decodes | None) -> tuple[Excerpt, ...]:
    """The chats with the largest mean KL, worst first."""
    means = comparison.kl_by_chat()
    found = []
    for chat in sorted(means, key=lambda chat: -means[chat])[:CHATS]:
        worst, ids = comparison.worst[chat], reference.sequences[chat]
        split = worst.position + 1
        found.append(
            Excerpt(
                chat=chat,
                position=worst.position,
                chat_kl=means[chat],
                kl=worst.kl,
                before=text_of(tokenizer, ids[max(0, split - _BEFORE) : split]),
                after=text_of(tokenizer, ids[split : split + _AFTER]) if split < len(ids) else "",
                reference=choices_of(tokenizer, worst.reference),
                candidate=choices_of(tokenizer, worst.candidate),
            )
        )
    return tuple(found)
