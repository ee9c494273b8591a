"""Measures against thresholds, in words: what is over, where it comes from, what to try. Pure."""

from __future__ import annotations

from hermes_deploy.recipes import GateThresholds
from hermes_deploy.verification.measures import Measures
from hermes_deploy.verification.result import KERNELS, Chain, GateResult


def over_threshold(
    measures: Measures, allowed: GateThresholds, where: str = "", stages: Chain | None = None
) -> list[str]:
    """Every measure that is not within its threshold, in words; empty = passed. NaN never passes.

    The measured value is judged, not an end of its interval: two runs over the same files then
    always agree, and the interval says how much the value is worth.
    """
    problems = []
    for what, found, limit in (
        ("mean KL in nats", measures.kl, allowed.max_kl),
        ("perplexity over the reference's", measures.perplexity_ratio, allowed.max_perplexity_ratio),
        (f"relative error of weights (worst: {where})", measures.tensor_error, allowed.max_tensor_error),
    ):
        if not found <= limit:
            problems.append(f"{what} is {found:.3g}, allowed is at most {limit:g}")
    for what, found, least in (
        ("share of equal first choices", measures.top1, allowed.min_top1),
        (
            "share of equal first choices where the reference is sure",
            measures.top1_confident,
            allowed.min_top1_confident,
        ),
    ):
        if least is not None and not found >= least:
            problems.append(f"{what} is {found:.3f}, allowed is at least {least:g}")
    if allowed.max_kernels_kl is not None and stages is not None:
        added = next(step.kl for step in stages.steps if step.stage == KERNELS)
        if not added <= allowed.max_kernels_kl:
            problems.append(
                f"mean KL that {KERNELS} add is {added:.3g}, allowed is at most {allowed.max_kernels_kl:g}: "
                "not rounding, the graph computes something else"
            )
    if allowed.max_cache_misfit is not None and stages is not None:
        if stages.cache is None:
            problems.append("the graph keeps keys and values as they are, the recipe in 8 bits")
        elif not stages.cache.misfit <= allowed.max_cache_misfit:
            problems.append(
                f"error of keys and values in 8 bits (worst: {stages.cache.where}) is {stages.cache.misfit:.3g} times "
                f"that of scales made for these texts, allowed is at most {allowed.max_cache_misfit:g}"
            )
    return problems


def refusal(result: GateResult) -> str:
    """The message of a build that failed: every problem, the stage that the difference comes from, the
    worst places, and what to try."""
    parts = [
        f"the {result.recipe} build for {result.target} does not answer like its reference: "
        f"{'; '.join(result.problems)}. Nothing is published."
    ]
    if result.chain is not None:
        parts.append(_blame(result))
    if result.worst_tensor:
        parts.append(f"Furthest weight: {result.worst_tensor} (off by {result.measures.tensor_error:.3g}).")
    if result.worst:
        worst = result.worst[0]
        parts.append(
            f"Worst chat: {worst.chat} (KL {worst.chat_kl:.3g}), after {worst.before[-40:]!r} the reference says "
            f"{worst.reference[0][0]!r}, this build {worst.candidate[0][0]!r}."
        )
    parts += [f"Reference: {result.reference}.", _advice(result)]
    return " ".join(parts)


def _blame(result: GateResult) -> str:
    assert result.chain is not None
    steps = ", ".join(f"{step.stage} {step.kl:.3g}" for step in result.chain.steps)
    return f"The difference comes from {result.chain.largest.stage} (KL of each stage against the one before: {steps})."


def _advice(result: GateResult) -> str:
    if result.measures.tensor_error > result.thresholds["max_tensor_error"]:
        return "Weights differ from the checkpoint's more than rounding explains: get the checkpoint again and rebuild."
    return "Try a recipe with more precision: fp16 on GPUs, fp32 on the CPU."
