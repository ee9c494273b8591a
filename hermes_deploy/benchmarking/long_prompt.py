"""What running chats feel while a long prompt is read in beside them, and what the long prompt pays for that."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hermes_deploy.benchmarking.doors import Answers
from hermes_deploy.benchmarking.listening import Listener, await_all, gaps, percentile
from hermes_deploy.benchmarking.prompts import Prompts
from hermes_deploy.benchmarking.report import Collected, What

CONTEXT = 128
"""Tokens of the prompts of the chats that run."""
STRETCHED = "inter-token p99 while a long prompt is read, against without"
BESIDE, ALONE = "first token of the long prompt, beside them", "first token of the long prompt, alone"


def measure_alone(door: Answers, prompts: Prompts, tokens: int, found: Collected) -> None:
    """A prompt of `tokens` tokens that no cache holds, with nobody beside it."""
    (timeline,) = await_all(door.ask([prompts.of(tokens, prompts.fresh())], 1))
    found.keep(What(ALONE, "ms", door.name, 0, tokens), timeline.first_token_s * 1e3)


def measure_beside(
    door: Answers, prompts: Prompts, running: int, tokens: int, found: Collected, *, quiet_tokens: int = 150
) -> None:
    """`running` chats that get tokens; after `quiet_tokens` of each a prompt of `tokens` tokens comes.

    Compared are the gaps between tokens before it was sent and from then to its first token.
    """
    short = [prompts.of(CONTEXT, case) for case in range(running)]
    long = prompts.of(tokens, prompts.fresh())
    for prompt in short:
        await_all(door.ask([prompt], 1))
    # they are cancelled when the long prompt is in; until then they must not end
    chats = door.ask(short, 1 << 30)
    try:
        for chat in chats:
            chat.await_first()
        began = time.monotonic()
        _await_tokens(chats, quiet_tokens)
        sent = time.monotonic()
        (timeline,) = await_all(door.ask([long], 1))
        in_it = sent + timeline.first_token_s
    finally:
        for chat in chats:
            chat.cancel()
    timelines = await_all(chats)
    without, during = gaps(timelines, began, sent), gaps(timelines, sent, in_it)
    before, beside = percentile(without, 99), percentile(during, 99)
    where = (door.name, running, tokens)
    found.keep(What("inter-token p99 without", "ms", *where), before * 1e3)
    found.keep(What("inter-token p99 while it is read", "ms", *where), beside * 1e3)
    found.keep(What("inter-token, longest while it is read", "ms", *where), max(during) * 1e3)
    found.keep(What(STRETCHED, "ratio", *where), beside / before)
    found.keep(What(BESIDE, "ms", *where), timeline.first_token_s * 1e3)


def _await_tokens(chats: Sequence[Listener], more: int) -> None:
    """Until each has got `more` tokens, or has ended."""
    wanted = [len(chat.so_far().token_ids) + more for chat in chats]
    while any(chat.running and len(chat.so_far().token_ids) < count for chat, count in zip(chats, wanted, strict=True)):
        time.sleep(0.02)
