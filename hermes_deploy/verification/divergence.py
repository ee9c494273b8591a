"""The first token at which a candidate's greedy answer leaves the reference's.

Up to its first other choice a candidate has read the same text as the reference. So reading prompt
and reference's answer once shows exactly where its own greedy answer would have left it, without
letting it answer (which a graph that dequantizes its weights in every run cannot do in good time).
The reference answers once for all candidates. Behind an answer's end nothing is compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hermes_deploy.verification.answers import Answers
from hermes_deploy.verification.candidate import Candidate
from hermes_deploy.verification.measures import first_choices
from hermes_deploy.verification.result import Divergence
from hermes_deploy.verification.text import Decodes, choices_of, text_of

Float = npt.NDArray[np.float32]


def divergences(
    answers: Answers, head: Float, candidate: Candidate, tokenizer: Decodes | None
) -> tuple[Divergence, ...]:
    """Where the candidate leaves each answer. `head` is the reference's, [vocab, hidden_size].

    Prompts that the candidate's context does not hold together with their answers are left out.
    """
    whole = answers.whole
    held = [row for row, read in enumerate(whole) if len(read) <= candidate.longest]
    theirs: dict[int, list[Float]] = {row: [] for row in held}
    for which, start, logits in candidate.answers([whole[row] for row in held]):
        row = held[which]
        theirs[row].append(logits[max(0, len(answers.prompts[row]) - 1 - start) :].copy())
    starts = np.cumsum([0, *map(len, answers.tokens)])
    found = []
    for row in held:
        logits, tokens = np.concatenate(theirs.pop(row)), answers.tokens[row]
        other = np.flatnonzero(logits.argmax(axis=1) != np.asarray(tokens))
        at = int(other[0]) if len(other) else None
        ours = None if at is None else answers.hidden[starts[row] + at] @ head.T
        found.append(
            Divergence(
                prompt=text_of(tokenizer, answers.prompts[row]),
                length=len(tokens),
                at=at,
                shared=text_of(tokenizer, tokens[:at]) if at != 0 else "",
                rest="" if at is None else text_of(tokenizer, tokens[at:]),
                reference=() if ours is None else choices_of(tokenizer, first_choices(ours)),
                candidate=() if at is None else choices_of(tokenizer, first_choices(logits[at])),
            )
        )
    return tuple(found)


def median_divergence(found: Sequence[Divergence]) -> tuple[float, bool]:
    """(tokens before the first other one, is it more than that): answers that are equal to their end
    count as longer than every one that is not. Raises ValueError when there is none."""
    ordered = sorted(found, key=lambda each: (each.at is None, each.length if each.at is None else each.at))
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    if high.at is None:
        return float(low.length if low.at is None else low.at), True
    assert low.at is not None
    return statistics.mean((low.at, high.at)), False
