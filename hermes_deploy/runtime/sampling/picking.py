"""One token for each chat of a step: rows of logits in, ids out. Knows no engine, no text, no clock.

A row's pick depends on nothing but its own logits, settings, tokens and random number, to the last bit:
the same seed and prompt give the same answer whatever else is in the batch. What a chat did not ask for
costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.sampling.distribution import distribution, draw, draw_near
from hermes_deploy.runtime.sampling.logprobs import prompt_logprobs, token_logprobs
from hermes_deploy.runtime.sampling.processors import constrain, processors_of
from hermes_deploy.runtime.sampling.settings import MOST_LOGPROBS, Constraint, Sampling, TokenLogprobs, check_whole

__all__ = ["CONSTRAINT_FAILED", "NOTHING_ALLOWED", "NOT_FINITE", "Sampler", "pick", "prompt_logprobs"]

NOT_FINITE, NOTHING_ALLOWED, CONSTRAINT_FAILED = -1, -2, -3


class Sampler:
    """One a chat: settings, random stream, and what penalties and bad words must know of its tokens.

    `prompt` [n] token ids. `stop_ids` are not chosen before `min_tokens` tokens. `index`: which of several
    answers to one prompt this is; (`seed`, `index`) names a random stream. `logprobs`: None = none, else how
    many of the likeliest come with each token. Used by one thread.

    `failure`: what its constraint raised, after CONSTRAINT_FAILED.

    Raises RequestError for an id that the vocabulary does not have, and other values out of range.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: npt.NDArray[np.int64],
        vocab_size: int,
        *,
        stop_ids: frozenset[int] = frozenset(),
        min_tokens: int = 0,
        index: int = 0,
        logprobs: int | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        check_whole("min_tokens", min_tokens, 0, None, "0 or more")
        check_whole("index", index, 0, None, "0 or more")
        if logprobs is not None:
            check_whole("logprobs", logprobs, 0, MOST_LOGPROBS, f"0 to {MOST_LOGPROBS}")
        _check_ids("logit_bias", (token for token, _ in sampling.logit_bias), vocab_size)
        _check_ids("bad_words", (token for word in sampling.bad_words for token in word), vocab_size)
        _check_ids("stop_ids", stop_ids, vocab_size)
        self.sampling = sampling
        self.logprobs = logprobs
        self.failure: Exception | None = None
        self._constraint = constraint
        self._by_top_p = sampling.top_p < 1 and sampling.top_k == sampling.min_p == 0 and sampling.typical_p == 1
        self._processors = processors_of(sampling, prompt, stop_ids, min_tokens)
        # spawn_key keeps seeds and indices apart, which one sequence of both would not for seeds over 2^32
        stream = np.random.SeedSequence(sampling.seed, spawn_key=(index,))
        self._generator = np.random.Generator(np.random.PCG64(stream))

    @property
    def changes_logits(self) -> bool:
        """Something besides temperature and the like stands between the logits and the pick."""
        return bool(self._processors) or self._constraint is not None

    def process(self, row: npt.NDArray[np.float32]) -> None:
        """Biases, penalties, bans and the constraint, on `row` [vocab] in place."""
        for processor in self._processors:
            processor.apply(row)
        if self._constraint is not None:
            constrain(row, self._constraint)

    def choose(self, row: npt.NDArray[np.float32], likeliest: int, top: float) -> int:
        """The id drawn from the processed `row` [vocab], whose largest logit is `top`, at `likeliest`."""
        if self.sampling.temperature == 0:
            return likeliest
        uniform = self._generator.random()
        token = draw_near(row, top, self.sampling, uniform) if self._by_top_p else None
        if token is not None:
            return token
        ids, weights = distribution(row, top, self.sampling)
        place = draw(weights, uniform)
        return place if ids is None else int(ids[place])

    def record(self, token: int) -> None:
        """`token` is part of the answer."""
        for processor in self._processors:
            processor.record(token)
        if self._constraint is not None:
            self._constraint.accept(token)


def pick(logits: npt.NDArray[np.float32], samplers: Sequence[Sampler]) -> tuple[list[int], list[TokenLogprobs | None]]:
    """One token for each row of `logits` [n, vocab], and its log probabilities where they were asked for.

    NOT_FINITE where a row holds NaN or +inf, or nothing but -inf; NOTHING_ALLOWED where constraint, bad words
    and the like leave no token; CONSTRAINT_FAILED where a constraint raised (`Sampler.failure`). Such a row
    has no log probabilities and its sampler did not move. Each picked token is recorded in its sampler.
    """
    rows = np.ascontiguousarray(logits, dtype=np.float32)  # a copy only if need be: sums depend on strides
    likeliest = rows.argmax(axis=1)  # a NaN counts as the largest
    tops = rows[np.arange(len(rows)), likeliest].tolist()
    ids: list[int] = []
    logprobs: list[TokenLogprobs | None] = []
    with np.errstate(over="ignore"):  # of float32, by logits that no model gives: an infinity is right
        for row, best, top, sampler in zip(rows, likeliest.tolist(), tops, samplers, strict=True):
            token = _pick_one(row, best, top, sampler) if math.isfinite(top) else NOT_FINITE
            ids.append(token)
            wanted = sampler.logprobs if token >= 0 else None
            logprobs.append(None if wanted is None else token_logprobs(row, top, token, wanted))
    return ids, logprobs


def _pick_one(row: npt.NDArray[np.float32], likeliest: int, top: float, sampler: Sampler) -> int:
    if not sampler.changes_logits:
        return sampler.choose(row, likeliest, top)
    processed = row.copy()  # the raw ones are wanted for log probabilities
    try:
        sampler.process(processed)
        likeliest = int(processed.argmax())
        top = float(processed[likeliest])
        if top == -math.inf:
            return NOTHING_ALLOWED
        token = sampler.choose(processed, likeliest, top)
        sampler.record(token)
    except Exception as error:  # a constraint is a stranger's code: its chat ends, its neighbours go on
        sampler.failure = error
        return CONSTRAINT_FAILED
    return token


def _check_ids(name: str, ids: Iterable[int], vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise RequestError(f"{name} holds token id {token}; this model has ids 0 to {vocab_size - 1}")
