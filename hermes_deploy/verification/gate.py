"""The gate: does the graph that holds an engine's tensors answer like the unquantized checkpoint?

Takes a `Reference` (made once a build), the saved graph, the target and the recipe; gives the
numbers or raises GateError that says which one is over, by how much, where, and what to try.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hermes_deploy.errors import GateError
from hermes_deploy.recipes import GateThresholds, Recipe
from hermes_deploy.targets import Target
from hermes_deploy.verification.candidate import Candidate
from hermes_deploy.verification.measures import Comparison, Measures
from hermes_deploy.verification.reference import Reference
from hermes_deploy.verification.tensor_error import TensorError, tensor_error
from hermes_deploy.verification.tensors import tensors_sha256

_ROWS = 64
"""Positions compared at once: a handful of [_ROWS, vocab] arrays is all that is ever held."""


@dataclass(frozen=True)
class GateResult:
    """What the gate found. `tensors_sha256` is the hash of the very file that it ran; `reference` says
    in words what it was compared with; `worst_tensor` where tensor_error was found."""

    passed: bool
    target: str
    precision: str
    reference: str
    measures: Measures
    thresholds: dict[str, float]
    tensors_sha256: str
    worst_tensor: str


def run_gate(reference: Reference, onnx_path: Path, target: Target, recipe: Recipe) -> GateResult:
    """Measures the saved graph and judges it by the recipe's thresholds.

    Raises GateError when a measure is over its threshold, when an answer is not finite, or when the
    graph is not a complete one of this model.
    """
    tensors = tensors_sha256(onnx_path)
    weights = tensor_error(onnx_path, reference.config, reference.tensors)
    measures = compare(reference, onnx_path, target, weights)
    allowed = recipe.thresholds(reference.parameters)
    problems = over_threshold(measures, allowed, weights.where)
    if problems:
        raise GateError(
            f"the {recipe.linear} build for {target.name} does not answer like its reference: {'; '.join(problems)}. "
            f"Nothing is published. Reference: {reference.text}. {_advice(allowed, measures)}"
        )
    return GateResult(
        passed=True,
        target=target.name,
        precision=recipe.linear,
        reference=reference.text,
        measures=measures,
        thresholds=allowed.model_dump(),
        tensors_sha256=tensors,
        worst_tensor=weights.where,
    )


def compare(reference: Reference, onnx_path: Path, target: Target, weights: TensorError) -> Measures:
    """The numbers alone, over every position of the reference that the graph's context holds."""
    comparison = Comparison()
    candidate = Candidate(onnx_path, max(map(len, reference.sequences)))
    head = reference.head().T
    starts = np.cumsum([0, *map(len, reference.sequences)])
    for which, start, logits in candidate.answers(reference.sequences):
        sequence = reference.sequences[which]
        for top in range(0, len(logits), _ROWS):
            theirs = logits[top : top + _ROWS]
            at, end = start + top, start + top + len(theirs)
            if not np.isfinite(theirs).all():
                raise GateError(
                    f"the build for {target.name} gives NaN or infinity between positions {at} and {end} of held-out "
                    f"chat {which}: activations or weights overflow. Try a recipe with more precision (fp16, fp32)."
                )
            ours = reference.hidden[starts[which] + at : starts[which] + end] @ head
            comparison.add(ours, theirs, np.asarray(sequence[at + 1 : end + 1], dtype=np.int64))
    return comparison.measures(weights.worst)


def over_threshold(measures: Measures, allowed: GateThresholds, where: str = "") -> list[str]:
    """Every measure that is not within its threshold, in words; empty = passed. NaN never passes."""
    problems = []
    for what, found, limit in (
        ("mean KL in nats", measures.kl, allowed.max_kl),
        ("perplexity over the reference's", measures.perplexity_ratio, allowed.max_perplexity_ratio),
        (f"relative error of weights (worst: {where})", measures.tensor_error, allowed.max_tensor_error),
    ):
        if not found <= limit:
            problems.append(f"{what} is {found:.3g}, allowed is at most {limit:g}")
    if not measures.top1 >= allowed.min_top1:
        problems.append(
            f"share of equal first choices is {measures.top1:.3f}, allowed is at least {allowed.min_top1:g}"
        )
    return problems


def _advice(allowed: GateThresholds, measures: Measures) -> str:
    if measures.tensor_error > allowed.max_tensor_error:
        return "Weights differ from the checkpoint's more than rounding explains: get the checkpoint again and rebuild."
    return "Try a recipe with more precision: fp16 on GPUs, fp32 on the CPU."
