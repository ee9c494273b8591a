"""The gate: does the graph that holds an engine's tensors answer like the unquantized checkpoint?

Takes a `Reference` (made once a build), the saved graph, the target and the recipe; gives the
numbers or raises GateError that says which one is over, by how much, where, and what to try.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import LazyTensor
from hermes_deploy.errors import GateError
from hermes_deploy.quantization.reference import Progress
from hermes_deploy.recipes import Recipe
from hermes_deploy.targets import Target
from hermes_deploy.verification.candidate import Candidate
from hermes_deploy.verification.divergence import divergences
from hermes_deploy.verification.excerpts import excerpts
from hermes_deploy.verification.judgement import over_threshold, refusal
from hermes_deploy.verification.measures import Comparison, histogram
from hermes_deploy.verification.reference import Reference
from hermes_deploy.verification.result import GateResult
from hermes_deploy.verification.stages import chain
from hermes_deploy.verification.tensor_error import tensor_error
from hermes_deploy.verification.tensors import tensors_sha256
from hermes_deploy.verification.text import Decodes

_ROWS = 128
"""Positions compared at once: of the reference's logits, [_ROWS, vocab] is all that is ever held."""


def run_gate(
    reference: Reference,
    onnx_path: Path,
    target: Target,
    recipe: Recipe,
    *,
    tokenizer: Decodes | None = None,
    tensors: Mapping[str, LazyTensor] | None = None,
    accept_degraded: bool = False,
    progress: Progress | None = None,
) -> GateResult:
    """Measures the saved graph and judges it by the recipe's thresholds.

    `tokenizer` turns ids into text for the report; without it there are ids. `tensors`: what the graph
    was made from, where that is not the checkpoint as it came (scales folded between its matrices);
    they are held against the stored weights, while answers are held against the reference.
    `progress`: (positions read, positions in all).

    Raises GateError when a measure is over its threshold, unless `accept_degraded`: then the result
    says so in `passed` and `problems`. Raises it always when an answer is not finite, or when the
    graph is not a complete one of this model.
    """
    made_of = tensors_sha256(onnx_path)
    weights = tensor_error(onnx_path, reference.config, reference.tensors if tensors is None else tensors)
    candidate = Candidate(onnx_path, max(map(len, [*reference.sequences, *reference.answers.whole])))
    comparison = compare(reference, candidate, target, progress)
    measures = comparison.measures(weights.worst)
    allowed = recipe.thresholds(reference.parameters)
    stages = chain(reference, onnx_path, candidate)
    problems = over_threshold(measures, allowed, weights.where, stages)
    result = GateResult(
        passed=not problems,
        target=target.name,
        precision=recipe.linear,
        recipe=recipe.name,
        reference=reference.text,
        measures=measures,
        intervals=comparison.intervals(),
        chats=len(comparison.kl_by_chat()),
        thresholds=allowed.model_dump(exclude_none=True),
        tensors_sha256=made_of,
        worst_tensor=weights.where,
        problems=tuple(problems),
        kl_histogram=histogram(comparison.kl_by_position()),
        chain=stages,
        worst=excerpts(comparison, reference, tokenizer),
        divergences=divergences(reference.answers, reference.head(), candidate, tokenizer),
        operators=f"ONNX Runtime: {candidate.without_kernels}" if candidate.without_kernels else "hermes",
    )
    if problems and not accept_degraded:
        raise GateError(refusal(result))
    return result


def compare(reference: Reference, candidate: Candidate, target: Target, progress: Progress | None = None) -> Comparison:
    """The answers alone, over every position of the reference that the graph's context holds and that
    is not a repetition (`reference.first_compared`)."""
    comparison = Comparison(len(reference.sequences))
    starts = np.cumsum([0, *map(len, reference.sequences)])
    head = reference.head().T
    ours = np.empty((_ROWS, head.shape[1]), dtype=np.float32)
    for chat, start, theirs in _blocks(candidate, reference):
        at, end = starts[chat] + start, starts[chat] + start + len(theirs)
        np.matmul(reference.hidden[at:end], head, out=ours[: len(theirs)])
        following = np.asarray(reference.sequences[chat][start + 1 : start + len(theirs) + 1], dtype=np.int64)
        rows = comparison.add(chat, start, ours[: len(theirs)], theirs, following)
        if not np.isfinite(rows.kl).all():
            where = start + int(np.flatnonzero(~np.isfinite(rows.kl))[0])
            raise GateError(
                f"the build for {target.name} gives NaN or infinity at position {where} of held-out chat {chat}: "
                f"activations or weights overflow. {_more_range(target)}"
            )
        if progress is not None:
            progress(int(end), int(starts[-1]))
    return comparison


def _more_range(target: Target) -> str:
    if target.activation == "fp32":
        return "Try another recipe, or get the checkpoint again."
    return f"{target.name} computes in fp16, which ends at 65,504; what has more range: --target cpu."


def _blocks(candidate: Candidate, reference: Reference) -> Iterator[tuple[int, int, npt.NDArray[np.float32]]]:
    firsts = reference.firsts
    for chat, start, logits in candidate.answers(reference.sequences):
        for top in range(max(0, firsts[chat] - start), len(logits), _ROWS):
            yield chat, start + top, logits[top : top + _ROWS]
