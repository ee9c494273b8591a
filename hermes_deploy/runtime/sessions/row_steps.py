"""How a call of a session becomes runs of an engine: the cut into pieces, and the inputs of each dialect. Pure.

Takes tokens and positions, gives numpy arrays by input name (shapes and dtypes: `graphs.spec`). Knows
sizes that an engine takes, not what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from hermes_deploy.targets import Dialect

Kind = Literal["prefill", "decode"]
Inputs = dict[str, npt.NDArray[np.int64] | npt.NDArray[np.int32]]


@dataclass(frozen=True)
class Sizes:
    """Least and most of what one kind of run takes: rows, tokens a row, and rows of logits a row."""

    batch: tuple[int, int]
    tokens: tuple[int, int]
    logits: tuple[int, int]


@dataclass(frozen=True)
class EngineFacts:
    """`cache_length`: tokens that one row of the cache has room for."""

    dialect: Dialect
    vocab_size: int
    cache_length: int
    prefill: Sizes
    decode: Sizes

    @property
    def trouble(self) -> str:
        """Why a session cannot run such an engine, in words; empty when it can."""
        if self.prefill.batch[0] > 1:
            return f"its prefill profile takes {self.prefill.batch[0]} rows and more, one is needed"
        if self.decode.batch[0] > 1 or self.decode.tokens[0] > 1:
            return "its decode profile does not take one row of one token"
        return ""


@dataclass(frozen=True)
class Piece:
    """One run over tokens first..first+count of a call, filled up to `size`; logits of its last `wanted` tokens."""

    kind: Kind
    first: int
    count: int
    size: int
    wanted: int


def cut(facts: EngineFacts, count: int, logits: int, start: int, length: int) -> list[Piece]:
    """Runs that prefill `count` tokens from position `start`, with logits of the last `logits`.

    `length`: up to where the row holds what somebody relies on. An engine whose profile gives fewer rows
    of logits at a time reads the last tokens in pieces of so many; where a piece is shorter than its
    profile takes, it is filled up, and single tokens take the decode profile where there is no room to fill.
    """
    most = facts.prefill.logits[1]
    whole = max(count - max(logits - most, 0), 1)
    ends = [whole, *range(whole + most, count, most), count] if whole < count else [count]
    found: list[Piece] = []
    first = 0
    for end in ends:
        wanted = min(max(logits - (count - end), 0), end - first)
        size = max(end - first, facts.prefill.tokens[0])
        fits = start + first + size <= facts.cache_length and (size == end - first or start + end >= length)
        if fits:
            found.append(Piece("prefill", first, end - first, size, wanted))
        else:
            found += [Piece("decode", at, 1, 1, int(at >= end - wanted)) for at in range(first, end)]
        first = end
    return found


def step_inputs(
    facts: EngineFacts, tokens: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> Inputs:
    """tokens [B, S] written at positions starts [B].. of B rows; logits of `wanted` [B, R], each 0 to S-1."""
    size = tokens.shape[1]
    inputs: Inputs = {
        "input_ids": np.ascontiguousarray(tokens, dtype=np.int64),
        "logits_positions": np.ascontiguousarray(wanted, dtype=np.int64),
    }
    if facts.dialect == "portable":
        begin = np.ascontiguousarray(starts, dtype=np.int64)
        inputs["position_ids"] = begin[:, np.newaxis] + np.arange(size, dtype=np.int64)
        inputs["write_indices"] = begin
    else:
        inputs["seqlens_k"] = (starts + size - 1).astype(np.int32)
        inputs["total_sequence_length"] = np.array(starts.max() + size, dtype=np.int32)
    return inputs


def piece_inputs(facts: EngineFacts, piece: Piece, tokens: npt.NDArray[np.int64], start: int) -> Inputs:
    """Inputs of one piece of a prefill call of `tokens` [n] from position `start`; R = wanted, but at least one."""
    filled = np.zeros((1, piece.size), dtype=np.int64)
    filled[0, : piece.count] = tokens[piece.first : piece.first + piece.count]
    sizes = facts.prefill if piece.kind == "prefill" else facts.decode
    rows = max(piece.wanted, sizes.logits[0])
    wanted = np.arange(piece.count - rows, piece.count, dtype=np.int64)
    # a profile that asks for more rows of logits than there are tokens gets the first one several times
    return step_inputs(facts, filled, np.array([start + piece.first]), np.maximum(wanted, 0)[np.newaxis])
