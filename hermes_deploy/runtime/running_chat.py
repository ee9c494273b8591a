"""What the token loop holds of one request while it waits and runs, and what it tells of itself. No engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from hermes_deploy.runtime.drafter import Drafter
from hermes_deploy.runtime.sampling import Sampler, TokenLogprobs
from hermes_deploy.runtime.stream import Generation, TokenStream


@dataclass
class Chat:
    """`submitted`: time.monotonic() when it was."""

    key: int
    asked: Generation
    stream: TokenStream
    sampler: Sampler
    submitted: float
    generated: int = 0
    last: int = -1
    """The newest token: not in the cache yet, the next decode writes it."""
    told: float = 0.0
    """When `last` was delivered."""
    drafter: Drafter | None = None
    """Made when the chat first runs alone."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def prompt(self) -> int:
        """Its tokens."""
        return len(self.asked.prompt)

    @property
    def position(self) -> int:
        """Where `last` belongs in the cache."""
        return self.prompt + self.generated - 1

    def room(self, max_context: int) -> int:
        """Tokens that its answer may still have."""
        return min(self.asked.max_tokens, max_context - self.prompt) - self.generated


@dataclass(frozen=True)
class Progress:
    """`active` chats hold a slot, `waiting` ones do not; `calls` of the engine came back so far.

    `in_call`: seconds that the call which is going on has taken, None between calls. `longest_call`: seconds.
    """

    dead: str | None
    draining: bool
    active: int
    waiting: int
    calls: int
    in_call: float | None
    longest_call: float


def sampler_of(asked: Generation, vocab_size: int) -> Sampler:
    """Raises RequestError for what `Sampler` refuses."""
    return Sampler(
        asked.sampling,
        asked.prompt,
        vocab_size,
        stop_ids=asked.stop_ids,
        min_tokens=asked.min_tokens,
        index=asked.index,
        logprobs=asked.logprobs,
        constraint=asked.constraint,
    )
