"""A session against the logits of transformers for the same tokens, call by call."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.runtime.session import Session

ALLOWED = 0.05
"""Largest error of a logit, in standard deviations of the reference's logits: rounding to fp16 costs a
twentieth of that, an answer from a wrong row or position thirty times that."""

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


class Found:
    """Errors of one kind of call."""

    def __init__(self, spread: float) -> None:
        self._spread = spread
        self._errors: list[float] = []
        self._same: list[bool] = []

    def add(self, found: Logits, expected: Logits) -> None:
        """Both [n, vocab]."""
        if found.shape != expected.shape:
            raise ValueError(f"the session gave logits {found.shape}, expected {expected.shape}")
        # not a number is the largest error there is
        self._errors += np.nan_to_num(np.abs(found - expected).max(axis=1), nan=np.inf).tolist()
        self._same += (found.argmax(axis=1) == expected.argmax(axis=1)).tolist()

    def summary(self) -> dict[str, Any]:
        worst = max(self._errors)
        return {
            "positions": len(self._errors),
            "max_abs_error": worst,
            "median_abs_error": float(np.median(self._errors)),
            "max_error_in_deviations": worst / self._spread,
            "same_first_choice": float(np.mean(self._same)),
            "ok": bool(worst <= ALLOWED * self._spread),
        }


def compare(session: Session, tokens: Tokens, expected: Logits) -> dict[str, Any]:
    """tokens [4, n], expected [4, n, vocab] to errors by kind of call; `session` has 4 slots and n positions."""
    spread = float(expected.std())
    calls = {
        "prefill": _prefill,
        "prefill in uneven chunks": _chunks,
        "decode step by step": _steps,
        "ragged decode, any slots, any order": _ragged,
        "a copied prefix": _copied,
        "the last position of a row": _to_the_end,
    }
    answer = {}
    for name, call in calls.items():
        found = Found(spread)
        call(session, tokens, expected, found)
        answer[name] = found.summary()
    return {"ok": all(each["ok"] for each in answer.values()), "deviation_of_logits": spread, "calls": answer}


def read(session: Session, slot: int, tokens: Tokens, start: int = 0) -> Logits:
    """tokens[start:] in chunks; logits [1, vocab] of the last."""
    for first in range(start, len(tokens), session.prefill_chunk):
        logits = session.prefill(slot, tokens[first : first + session.prefill_chunk], first)
    return logits


def _prefill(session: Session, tokens: Tokens, expected: Logits, found: Found) -> None:
    size = min(session.prefill_chunk, tokens.shape[1])
    for slot in range(len(tokens)):
        found.add(session.prefill(slot, tokens[slot, :size], 0, 1), expected[slot, size - 1 : size])
    found.add(session.prefill(0, tokens[0, :size], 0, size), expected[0, :size])


def _chunks(session: Session, tokens: Tokens, expected: Logits, found: Found) -> None:
    start = 0
    for count in (1, 5, 2, 16, 7, 11, 3):
        count = min(count, session.prefill_chunk)
        if start + count <= tokens.shape[1]:
            found.add(
                session.prefill(1, tokens[1, start : start + count], start, 1), expected[1, start + count - 1][None]
            )
            start += count


def _steps(session: Session, tokens: Tokens, expected: Logits, found: Found) -> None:
    found.add(read(session, 2, tokens[2, :5]), expected[2, 4:5])
    for at in range(5, min(tokens.shape[1], 45)):
        found.add(session.decode([2], tokens[2, at : at + 1], np.array([at])), expected[2, at : at + 1])


def _ragged(session: Session, tokens: Tokens, expected: Logits, found: Found) -> None:
    lengths = np.array([5, 17, 1, 30])
    for slot, length in enumerate(lengths):
        read(session, slot, tokens[slot, :length])
    for slots in ([0, 1, 2, 3], [3, 0], [0, 2], [1], [3, 1, 0], [2, 0], [1, 3], [2, 3, 0, 1], [0, 3, 2], [3, 2, 1, 0]):
        at = lengths[slots]
        found.add(session.decode(slots, tokens[slots, at], at), expected[slots, at])
        lengths[slots] += 1


def _copied(session: Session, tokens: Tokens, expected: Logits, found: Found) -> None:
    read(session, 0, tokens[0, :40])
    read(session, 3, tokens[3, :50])
    session.copy(0, 3, 0, 13)
    session.copy(0, 3, 13, 10)
    found.add(read(session, 3, tokens[0, :35], start=23), expected[0, 34:35])
    both = session.decode([3, 0], tokens[0, [35, 40]], np.array([35, 40]))
    found.add(both, expected[0, [35, 40]])


def _to_the_end(session: Session, tokens: Tokens, expected: Logits, found: Found) -> None:
    end = tokens.shape[1]
    read(session, 1, tokens[1, : end - 3])
    found.add(session.prefill(1, tokens[1, end - 3 : end - 1], end - 3), expected[1, end - 2 : end - 1])
    found.add(session.decode([1], tokens[1, end - 1 :], np.array([end - 1])), expected[1, end - 1 :])
