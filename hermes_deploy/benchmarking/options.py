"""What is to be measured on an artifact: what was asked for, what of it is possible, and why not the rest. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from hermes_deploy.benchmarking.doors import DOORS, DoorName
from hermes_deploy.errors import UsageError

MOST_STREAMS = 1024
MOST_ROUNDS = 1000
MOST_FILLED = 1 << 16
"""Tokens that all slots together may have where they are filled: some minutes on a small model."""
_SLACK = 16
"""Tokens by which an answer may grow when it is text and becomes tokens again."""


@dataclass(frozen=True)
class Sizes:
    """In tokens. `prefill`: of the prompt that is read; `contexts`: before the tokens whose speed is measured,
    `decoded` for each stream; `history`: of a chat when its second turn comes, the last `answer` of them its
    first answer. `full`: all slots are filled to the end for the memory."""

    prefill: int = 512
    contexts: tuple[int, ...] = (128, 1024)
    decoded: int = 128
    history: int = 1000
    answer: int = 48
    full: bool = True


QUICK = Sizes(contexts=(128,), decoded=32, full=False)


@dataclass(frozen=True)
class Options:
    """`streams`: numbers of answers at once. Raises UsageError for what no artifact could do."""

    streams: tuple[int, ...] = (1, 4, 8, 16)
    rounds: int = 3
    doors: tuple[DoorName, ...] = DOORS
    quick: bool = False
    sizes: Sizes | None = None
    """None: by `quick`."""

    def __post_init__(self) -> None:
        if not self.streams or not all(1 <= n <= MOST_STREAMS for n in self.streams):
            raise UsageError(f"--streams is {_listed(self.streams)}; it takes numbers from 1 to {MOST_STREAMS:,}")
        if len(set(self.streams)) < len(self.streams):
            raise UsageError(f"--streams is {_listed(self.streams)}, which names a number twice; name it once")
        if not 1 <= self.rounds <= MOST_ROUNDS:
            raise UsageError(f"--rounds is {self.rounds}; allowed is 1 to {MOST_ROUNDS:,}")
        unknown = [door for door in self.doors if door not in DOORS]
        if unknown or not self.doors or len(set(self.doors)) < len(self.doors):
            found = ",".join(self.doors) or "empty"
            raise UsageError(f"--doors is {found}; it takes each at most once: {', '.join(DOORS)}")

    @property
    def used_sizes(self) -> Sizes:
        return self.sizes or (QUICK if self.quick else Sizes())


@dataclass(frozen=True)
class Decode:
    """One number of streams at one context."""

    context: int
    streams: int

    @property
    def stagger(self) -> int:
        """Tokens that the first stream may be ahead of the last: prompts that are in the cache begin one a step."""
        return 2 * self.streams


@dataclass(frozen=True)
class Plan:
    """`left_out`: what was asked for and cannot be had, and why."""

    prefill: bool
    decode: tuple[Decode, ...]
    turns: bool
    full: bool
    left_out: dict[str, str] = field(default_factory=dict)


def make_plan(options: Options, max_slots: int, max_context: int, turn_tokens: int) -> Plan:
    """What an artifact of `max_slots` chats and `max_context` tokens can do of it. Raises UsageError for nothing.

    `turn_tokens`: what a second question adds to a chat, the template's words around it included.
    """
    sizes, left_out = options.used_sizes, dict[str, str]()
    decode = []
    for context in sizes.contexts:
        for streams in options.streams:
            one = Decode(context, streams)
            needed = context + sizes.decoded + one.stagger
            if streams > max_slots:
                left_out[f"{streams} streams"] = (
                    f"the artifact has {max_slots} slots. Build it with --max-slots {streams} to measure that"
                )
            elif needed > max_context:
                left_out[f"decode, {context:,} tokens, {streams} streams"] = _too_long(needed, max_context)
            else:
                decode.append(one)
    turn = sizes.history + turn_tokens + _SLACK
    prefill, turns = sizes.prefill + 1 <= max_context, turn <= max_context
    if not prefill:
        left_out[f"prefill, {sizes.prefill:,} tokens"] = _too_long(sizes.prefill + 1, max_context)
    if not turns:
        left_out[f"second turn, {sizes.history:,} tokens"] = _too_long(turn, max_context)
    if not decode:
        reasons = "\n".join(f"  {what}: {why}" for what, why in left_out.items())
        raise UsageError(f"nothing of --streams {_listed(options.streams)} can be measured here:\n{reasons}")
    if options.quick:
        for context in sorted(set(Sizes().contexts) - set(sizes.contexts)):
            left_out[f"decode, {context:,} tokens"] = "--quick"
    if not sizes.full:
        left_out["PSS with all slots full"] = "--quick" if options.quick else "it was not asked for"
    full = sizes.full and max_slots * max_context <= MOST_FILLED
    if sizes.full and not full:
        left_out["PSS with all slots full"] = (
            f"{max_slots} slots x {max_context:,} tokens take too long to fill; at most {MOST_FILLED:,} tokens are. "
            "Measure an artifact of fewer slots or less context"
        )
    return Plan(prefill, tuple(decode), turns, full, left_out)


def _too_long(needed: int, max_context: int) -> str:
    return (
        f"it takes {needed:,} tokens of context and the artifact has {max_context:,}. "
        f"Build it with --max-context {needed} or more to measure that"
    )


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers)) or "empty"
