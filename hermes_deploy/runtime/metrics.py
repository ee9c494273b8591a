"""What the token loop counts, as plain numbers that one thread writes and others may read. No clock, no server.

Every series exists from the start: at zero traffic there is a zero, not a gap.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

REJECTIONS = {
    "RESOURCE_EXHAUSTED": "queue_full",
    "OUT_OF_RANGE": "too_long",
    "UNAVAILABLE": "unavailable",
    "INVALID_ARGUMENT": "invalid",
    "INTERNAL": "internal",
}
"""Why a request was refused before it was queued, by the code that its caller gets."""
ENDINGS = ("stop", "length", "cancelled", "error")

_FAST = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """Counts of observations, in seconds, by upper bound; the last count is of those above every bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


@dataclass
class Metrics:
    """Counters only grow; gauges are what is now."""

    # gauges
    queue_depth: int = 0
    active_slots: int = 0
    free_slots: int = 0
    kv_tokens: int = 0
    """Tokens in the rows of running chats."""
    kv_cached_tokens: int = 0
    """Tokens in rows that nobody holds, kept for the next prompt that begins with them."""
    kv_capacity_tokens: int = 0
    healthy: int = 1
    # counters
    prompt_tokens: int = 0
    """Of prompts that were read in, found in the cache or not."""
    cached_prompt_tokens: int = 0
    output_tokens: int = 0
    drafted_tokens: int = 0
    """Guessed tokens that were checked."""
    accepted_tokens: int = 0
    """Of these, the ones that became part of an answer."""
    engine_failures: int = 0
    endings: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDINGS, 0))
    rejections: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REJECTIONS.values(), 0))
    # histograms, seconds
    queue_time: Histogram = field(default_factory=lambda: Histogram(_SLOW))
    time_to_first_token: Histogram = field(default_factory=lambda: Histogram(_SLOW))
    inter_token_latency: Histogram = field(default_factory=lambda: Histogram(_FAST))
    prefill_time: Histogram = field(default_factory=lambda: Histogram(_FAST))
    decode_time: Histogram = field(default_factory=lambda: Histogram(_FAST))
    loop_time: Histogram = field(default_factory=lambda: Histogram(_FAST))
    """Of a step, what was not the engine: scheduling, sampling, delivery."""

    @property
    def prefix_hit_ratio(self) -> float:
        """Share of prompt tokens that were found in the cache, 0 to 1."""
        return self.cached_prompt_tokens / self.prompt_tokens if self.prompt_tokens else 0.0
