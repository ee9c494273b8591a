"""Where answers differ most, as text that a person can read: the worst position of the worst chats."""

from __future__ import annotations

from hermes_deploy.verification.measures import Comparison
from hermes_deploy.verification.reference import Reference
from hermes_deploy.verification.result import Excerpt
from hermes_deploy.verification.text import Decodes, choices_of, text_of

CHATS = 6
"""How many are shown."""

_BEFORE, _AFTER = 48, 12
"""Tokens of the text around a position that are shown."""


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
