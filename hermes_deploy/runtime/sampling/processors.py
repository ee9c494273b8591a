"""What changes a row of logits before a token is drawn: biases, penalties, words that may not come.

Each processor holds what it must know of one chat's tokens, in arrays of ids: none passes over the
vocabulary. A processor that is off does not exist. They run in the order of Hugging Face transformers
(`GenerationMixin._get_logits_processor`), in float32 as there:

    logit_bias -> repetition penalty -> presence and frequency penalty -> bad words -> min_tokens -> constraint

and then come temperature and the rest, which `distribution` knows. transformers has no presence and
frequency penalty; they stand by their sibling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hermes_deploy.runtime.sampling.settings import Constraint, Sampling

_LARGEST = np.finfo(np.float32).max


class Processor(Protocol):
    def apply(self, row: npt.NDArray[np.float32]) -> None:
        """Changes the logits `row` [vocab] in place; -inf is a token that may not come."""
        ...

    def record(self, token: int) -> None:
        """`token` was generated."""
        ...


def processors_of(
    sampling: Sampling, prompt: npt.NDArray[np.int64], stop_ids: frozenset[int], min_tokens: int
) -> list[Processor]:
    """Those that `sampling` turns on, in their order; all ids are within the vocabulary."""
    chain: list[Processor] = []
    if sampling.logit_bias:
        chain.append(_Bias(sampling.logit_bias))
    if sampling.repetition_penalty != 1:
        chain.append(_Repetition(sampling.repetition_penalty, prompt))
    if sampling.presence_penalty or sampling.frequency_penalty:
        chain.append(_Frequency(sampling.presence_penalty, sampling.frequency_penalty))
    if sampling.bad_words:
        chain.append(_BadWords(sampling.bad_words, prompt))
    if stop_ids and min_tokens > 0:
        chain.append(_MinTokens(stop_ids, min_tokens))
    return chain


def constrain(row: npt.NDArray[np.float32], constraint: Constraint) -> None:
    """-inf for every token of `row` [vocab] that the mask does not allow. ValueError for a mask of another size."""
    mask = constraint.mask()
    words = -(-len(row) // 32)
    if mask.dtype != np.uint32 or mask.shape != (words,):
        raise ValueError(f"the mask is {mask.dtype} {list(mask.shape)}; {len(row)} tokens take uint32 [{words}]")
    bits = np.unpackbits(np.ascontiguousarray(mask, dtype="<u4").view(np.uint8), bitorder="little")
    np.putmask(row, bits[: len(row)] == 0, np.float32(-np.inf))


class _Bias:
    def __init__(self, biases: Iterable[tuple[int, float]]) -> None:
        pairs = list(biases)
        self._ids = np.array([token for token, _ in pairs], dtype=np.int64)
        self._values = np.array([value for _, value in pairs], dtype=np.float32)

    def apply(self, row: npt.NDArray[np.float32]) -> None:
        row[self._ids] += self._values

    def record(self, token: int) -> None:
        pass


class _Repetition:
    """Keskar et al. 2019: the logit of a token that came before is divided by the penalty, if negative multiplied."""

    def __init__(self, penalty: float, prompt: npt.NDArray[np.int64]) -> None:
        self._penalty = np.float32(penalty)
        self._seen = _Tally(np.unique(prompt))

    def apply(self, row: npt.NDArray[np.float32]) -> None:
        ids = self._seen.ids
        logits = row[ids]
        changed = np.where(logits < 0, logits * self._penalty, logits / self._penalty)
        row[ids] = np.minimum(changed, _LARGEST)  # a small penalty must not make an infinity of a large logit

    def record(self, token: int) -> None:
        self._seen.add(token)


class _Frequency:
    """OpenAI's API: logit -= presence * (count > 0) + frequency * count, counted over the answer."""

    def __init__(self, presence: float, frequency: float) -> None:
        self._presence, self._frequency = np.float32(presence), np.float32(frequency)
        self._seen = _Tally(np.empty(0, dtype=np.int64))

    def apply(self, row: npt.NDArray[np.float32]) -> None:
        ids = self._seen.ids
        row[ids] = row[ids] - self._presence - self._frequency * self._seen.counts

    def record(self, token: int) -> None:
        self._seen.add(token)


class _BadWords:
    """The last token of a sequence may not come where the tokens before it have come, in prompt or answer."""

    def __init__(self, words: Iterable[tuple[int, ...]], prompt: npt.NDArray[np.int64]) -> None:
        alone: set[int] = set()
        # looked up by the token that came last: a step costs nothing for words that are not under way
        self._by_last: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        longest = 1
        for word in words:
            *begin, end = word
            if begin:
                self._by_last.setdefault(begin[-1], []).append((tuple(begin), end))
                longest = max(longest, len(begin))
            else:
                alone.add(end)
        self._alone = np.array(sorted(alone), dtype=np.int64)
        self._tail: deque[int] = deque(prompt[-longest:].tolist(), maxlen=longest)

    def apply(self, row: npt.NDArray[np.float32]) -> None:
        row[self._alone] = -np.inf
        begun = self._by_last.get(self._tail[-1]) if self._tail else None
        if begun is not None:
            tail = tuple(self._tail)
            for begin, end in begun:
                if tail[-len(begin) :] == begin:
                    row[end] = -np.inf

    def record(self, token: int) -> None:
        self._tail.append(token)


class _MinTokens:
    def __init__(self, stop_ids: frozenset[int], min_tokens: int) -> None:
        self._ids = np.array(sorted(stop_ids), dtype=np.int64)
        self._left = min_tokens

    def apply(self, row: npt.NDArray[np.float32]) -> None:
        if self._left > 0:
            row[self._ids] = -np.inf

    def record(self, token: int) -> None:  # noqa: ARG002 - whichever it was
        self._left -= 1


class _Tally:
    """Which tokens came, and how often; the first ones count as one each."""

    def __init__(self, ids: npt.NDArray[np.int64]) -> None:
        self._place = {token: i for i, token in enumerate(ids.tolist())}
        self._ids = np.concatenate([ids, np.zeros(64, dtype=np.int64)])
        self._counts = np.ones(len(self._ids), dtype=np.float32)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """[n], each once."""
        ids: npt.NDArray[np.int64] = self._ids[: len(self._place)]
        return ids

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """[n], of `ids`."""
        counts: npt.NDArray[np.float32] = self._counts[: len(self._place)]
        return counts

    def add(self, token: int) -> None:
        place = self._place.get(token)
        if place is not None:
            self._counts[place] += 1
            return
        place = self._place[token] = len(self._place)
        if place == len(self._ids):  # twice the room: few copies however long the answer
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.ones_like(self._counts)])
        self._ids[place] = token
