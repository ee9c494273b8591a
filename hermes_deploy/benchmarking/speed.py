"""What a caller feels, through any door: reading a prompt, tokens by streams and context, a chat's second turn."""

from __future__ import annotations

from dataclasses import dataclass

from hermes_deploy.benchmarking.doors import Answers
from hermes_deploy.benchmarking.listening import await_all, gaps, percentile, together, tokens_per_second
from hermes_deploy.benchmarking.options import Decode, Sizes
from hermes_deploy.benchmarking.prompts import Prompts
from hermes_deploy.benchmarking.report import Collected, What
from hermes_deploy.chat import ChatTokenizer

PREFILL, DECODE = "prefill", "decode"
GAP_P50, GAP_P99 = "between pieces p50", "between pieces p99"
COLD, SECOND = "first token, cold chat", "first token, its second turn"
REUSED = "second turn, share found in the cache"


@dataclass(frozen=True)
class Subject:
    """A door, and what questions for it are made with."""

    door: Answers
    prompts: Prompts
    tokenizer: ChatTokenizer
    sizes: Sizes


def measure_prefill(subject: Subject, found: Collected) -> None:
    """A prompt that no cache holds, alone: prompt tokens by the time to the first token of the answer."""
    door, size = subject.door, subject.sizes.prefill
    prompt = subject.prompts.of(size, subject.prompts.fresh())
    (timeline,) = await_all(door.ask([prompt], 1))
    seconds = timeline.first_token_s
    found.keep(What(PREFILL, "tokens/s", door.name, 1, size), len(prompt.ids) / seconds)
    found.keep(What("first token, cold prompt", "ms", door.name, 1, size), seconds * 1e3)


def measure_decode(subject: Subject, wanted: Decode, found: Collected) -> None:
    """`wanted.streams` answers at once behind prompts of `wanted.context` tokens.

    The prompts are read in first, so that all begin together; counted is the time in which all get tokens.
    """
    door = subject.door
    prompts = [subject.prompts.of(wanted.context, case) for case in range(wanted.streams)]
    for prompt in prompts:
        await_all(door.ask([prompt], 1))
    timelines = await_all(door.ask(prompts, subject.sizes.decoded + wanted.stagger))
    speed, between = tokens_per_second(timelines), gaps(timelines, *together(timelines))
    p50, p99 = (percentile(between, percent) for percent in (50, 99))
    where = (door.name, wanted.streams, wanted.context)
    found.keep(What(DECODE, "tokens/s", *where), speed)
    found.keep(What(GAP_P50, "ms", *where), p50 * 1e3)
    found.keep(What(GAP_P99, "ms", *where), p99 * 1e3)


def measure_turns(subject: Subject, found: Collected) -> None:
    """A chat whose second question comes behind `history` tokens, and the very same chat to a server that has
    never seen it: time to the first token of each.

    The history goes as messages, as chat clients send it: what of the answer becomes other tokens when it is
    text again is read again.
    """
    door, sizes, prompts = subject.door, subject.sizes, subject.prompts
    seen, unseen = (prompts.of(sizes.history - sizes.answer, prompts.fresh()) for _ in range(2))
    (first,) = await_all(door.ask([seen], sizes.answer, stops=True))
    answer = subject.tokenizer.decode(first.token_ids)
    (cold,) = await_all(door.ask([prompts.next_turn(unseen, answer)], 1))
    second_turn = prompts.next_turn(seen, answer)
    (second,) = await_all(door.ask([second_turn], 1))
    where = (door.name, 1, sizes.history)
    found.keep(What(COLD, "ms", *where), cold.first_token_s * 1e3)
    found.keep(What(SECOND, "ms", *where), second.first_token_s * 1e3)
    if second.reused is not None:
        found.keep(What(REUSED, "share", *where), second.reused / len(second_turn.ids))


def fill(subject: Subject, slots: int, max_context: int) -> None:
    """Every slot to its last token: what the cache and the engine take at most is taken afterwards."""
    decoded = min(32, max_context // 2)
    prompts = [subject.prompts.of(max_context - decoded, subject.prompts.fresh()) for _ in range(slots)]
    for prompt in prompts:
        await_all(subject.door.ask([prompt], 1))
    await_all(subject.door.ask(prompts, decoded + 1))
