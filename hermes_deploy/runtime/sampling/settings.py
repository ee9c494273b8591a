"""What a request may ask of sampling, and what it gets back: records, validated where they are made.

Knows no logits and no vocabulary size: the ids named here are checked against a model's vocabulary by
`picking.Sampler`. How the settings act, and in which order, is told in `processors` and `distribution`.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import RequestError

MOST_BIASES = 1024
MOST_BAD_WORDS = 256
LONGEST_BAD_WORD = 64
"""In tokens."""
MOST_LOGPROBS = 20
"""Alternatives that come with one token, as OpenAI's API."""


class Constraint(Protocol):
    """What limits an answer token by token (a grammar, a JSON schema). One a request, used by one thread."""

    def mask(self) -> npt.NDArray[np.uint32]:
        """Which tokens may come next: bit t % 32 of word t // 32, `[ceil(vocab / 32)]`."""
        ...

    def accept(self, token: int) -> None:
        """`token` was generated."""
        ...


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural log probabilities under the model's own distribution: of the raw logits, before any setting.

    `logprob`: of the token that came. `top`: (token id, logprob) of the likeliest, best first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits. The defaults change nothing: greedy, everything off.

    `temperature` 0 = greedy; `top_k` 0 = off; `top_p` 1 = off; `min_p` 0 = off; `typical_p` 1 = off;
    `seed` None = a fresh one. `repetition_penalty` 1 = off, over prompt and answer (Keskar et al. 2019,
    as transformers); `presence_penalty` and `frequency_penalty` 0 = off, over the answer (OpenAI's API).
    `logit_bias`: (token id, added to its logit). `bad_words`: sequences of token ids that never come.

    Raises RequestError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, 100, "0 (greedy) to 100")
        check_whole("top_k", self.top_k, 0, None, "0 (off) or more")
        check_number("top_p", self.top_p, 0, 1, "more than 0 and at most 1 (off)", above=True)
        if self.seed is not None:
            check_whole("seed", self.seed, 0, 2**64 - 1, "0 to 2^64 - 1")
        check_number("min_p", self.min_p, 0, 1, "0 (off) to 1")
        check_number("typical_p", self.typical_p, 0, 1, "more than 0 and at most 1 (off)", above=True)
        check_number(
            "repetition_penalty", self.repetition_penalty, 0, 10, "more than 0 and at most 10 (1 is off)", above=True
        )
        check_number("presence_penalty", self.presence_penalty, -2, 2, "-2 to 2 (0 is off)")
        check_number("frequency_penalty", self.frequency_penalty, -2, 2, "-2 to 2 (0 is off)")
        self._check_biases()
        self._check_bad_words()

    def _check_biases(self) -> None:
        biases = _entries("logit_bias", self.logit_bias, "pairs of a token id and a number")
        if len(biases) > MOST_BIASES:
            raise RequestError(f"logit_bias has {len(biases)} entries; allowed are at most {MOST_BIASES}")
        seen: set[int] = set()
        for entry in biases:
            if not isinstance(entry, tuple | list) or len(entry) != 2:
                raise RequestError(f"logit_bias holds {entry!r}; each entry is a pair of a token id and a number")
            check_whole("a token id in logit_bias", entry[0], 0, None, "0 or more")
            check_number(f"logit_bias of token {entry[0]}", entry[1], -100, 100, "-100 to 100")
            if entry[0] in seen:
                raise RequestError(f"logit_bias names token {entry[0]} twice; give it one value")
            seen.add(entry[0])

    def _check_bad_words(self) -> None:
        words = _entries("bad_words", self.bad_words, "sequences of token ids")
        if len(words) > MOST_BAD_WORDS:
            raise RequestError(f"bad_words has {len(words)} sequences; allowed are at most {MOST_BAD_WORDS}")
        for word in words:
            if not isinstance(word, tuple | list):
                raise RequestError(f"bad_words holds {word!r}; each entry is a sequence of token ids")
            if not 1 <= len(word) <= LONGEST_BAD_WORD:
                raise RequestError(
                    f"bad_words holds {len(word)} token ids in a row; allowed is 1 to {LONGEST_BAD_WORD}"
                )
            for token in word:
                check_whole("a token id in bad_words", token, 0, None, "0 or more")


def check_number(name: str, value: object, low: float, high: float, allowed: str, *, above: bool = False) -> None:
    """RequestError unless `value` is a finite number from `low` (itself excluded if `above`) to `high`."""
    # numpy's numbers count; a bool is a number to Python alone
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise RequestError(f"{name} is {value!r}, which is no number; allowed is {allowed}")
    try:
        number = float(value)
    except OverflowError:  # of an int; any range ends before that
        number = math.inf
    if not low <= number <= high or (above and number == low):  # NaN is in no range
        raise RequestError(f"{name} is {value}; allowed is {allowed}")


def check_whole(name: str, value: object, low: int, high: int | None, allowed: str) -> None:
    """RequestError unless `value` is a whole number from `low` to `high` (None = no limit)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise RequestError(f"{name} is {value!r}, which is no whole number; allowed is {allowed}")
    if int(value) < low or (high is not None and int(value) > high):
        raise RequestError(f"{name} is {value}; allowed is {allowed}")


def _entries(name: str, value: object, what: str) -> tuple[object, ...]:
    if not isinstance(value, tuple | list):
        raise RequestError(f"{name} is {value!r}; it holds {what}")
    return tuple(value)
