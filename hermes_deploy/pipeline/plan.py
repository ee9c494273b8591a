"""Which stages a build has and what each depends on, before any of them runs. Reads no weight.

A stage's key holds the keys of the stages whose results it reads, so that a change anywhere makes
exactly what depends on it run again:

    calibrate VARIANT   source, token ids of the chats, precisions of the recipe, form of the target
    reference           source, token ids of the held-out chats, the model's name (it stands in reports)
    graph VARIANT       source, precisions, form, context, calibrate VARIANT
    gate VARIANT        graph VARIANT, reference, target; not the thresholds, which judge what it measured
    engine TARGETS      graph VARIANT, targets, profiles (slots), TensorRT's version
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hermes_deploy import kernels
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.engines import Availability, EngineGroup, Profile, serving_profiles
from hermes_deploy.pipeline.keys import StageKey, digest_of, stage_key
from hermes_deploy.pipeline.variants import Variant
from hermes_deploy.recipes import Recipe
from hermes_deploy.targets import Target

PREFILL_CHUNK = 512
"""Most tokens that one prefill call of a TensorRT engine takes; the sidecar carries it as the profile."""

_NOT_PRECISION = {"name", "description", "calibration_chats", "max_context", "max_slots", "gate", "small_model_gate"}
"""Keys of a recipe that no weight depends on; the chats themselves stand in the key as token ids."""

_NOT_FORM = {"name", "title", "precisions", "compute_capability", "flavours", "needs_gpu", "no_int8_cache"}
"""What of a target's record its graph does not depend on. Two targets of one form share calibration and graph."""


@dataclass(frozen=True)
class PlannedVariant:
    """`calibrate` is None for a recipe that needs none. `engines`: groups of targets and their keys."""

    variant: Variant
    calibrate: StageKey | None
    graph: StageKey
    gate: StageKey
    engines: tuple[tuple[EngineGroup, StageKey], ...]


@dataclass(frozen=True)
class BuildPlan:
    reference: StageKey
    variants: tuple[PlannedVariant, ...]

    @property
    def keys(self) -> list[StageKey]:
        """Every stage in the order in which it runs."""
        found = [self.reference]
        for planned in self.variants:
            found += [planned.calibrate] if planned.calibrate is not None else []
            found += [planned.graph, planned.gate, *(key for _, key in planned.engines)]
        return found


def plan_build(
    recipe: Recipe,
    checkpoint: Checkpoint,
    variants: Sequence[Variant],
    engines: Availability,
    calibration: Sequence[Sequence[int]] | None,
    heldout: str,
) -> BuildPlan:
    """`calibration`: token ids of the chats, None where the recipe needs none; `heldout`: sha256 of the texts' ids."""
    source = {"source": checkpoint.sha256}
    name = checkpoint.name
    # the reference says in words what it is, and its words are the gate's
    reference = stage_key("reference", "reference", name, **source, **_words(checkpoint), texts=heldout)
    precision = {key: value for key, value in recipe.model_dump().items() if key not in _NOT_PRECISION}
    chats = None if calibration is None else digest_of([list(ids) for ids in calibration])
    planned = []
    for variant in variants:
        reads = {**source, "precision": precision, "form": _form(variant.targets[0])}
        calibrate = stage_key("calibrate", f"calibrate {variant.name}", name, **reads, chats=chats) if chats else None
        graph = stage_key(
            "graph",
            f"graph {variant.name}",
            name,
            **reads,
            max_context=recipe.max_context,
            calibrate=calibrate.digest if calibrate else None,
        )
        gate = stage_key(
            "gate",
            f"gate {variant.name}",
            name,
            graph=graph.digest,
            reference=reference.digest,
            target=variant.targets[0].name,
            # what computes on this machine: theirs and ours are not the same to the last bit
            without_kernels=kernels.trouble() if variant.name == "cpu" else "",
        )
        groups = () if variant.served else engines.groups
        planned.append(
            PlannedVariant(
                variant, calibrate, graph, gate, tuple((group, _engine(group, recipe, name, graph)) for group in groups)
            )
        )
    return BuildPlan(reference, tuple(planned))


def profiles(recipe: Recipe) -> Sequence[Profile]:
    return serving_profiles(min(PREFILL_CHUNK, recipe.max_context), recipe.max_slots)


def _engine(group: EngineGroup, recipe: Recipe, model: str, graph: StageKey) -> StageKey:
    return stage_key(
        "engine",
        f"engine {'+'.join(t.name for t in group.targets)}",
        model,
        graph=graph.digest,
        targets=[t.name for t in group.targets],
        tensorrt=f"{group.flavour} {group.version}",
        profiles=[asdict(profile) for profile in profiles(recipe)],
        precision=recipe.linear,
        head=recipe.head,
    )


def _form(target: Target) -> dict[str, Any]:
    return {name: value for name, value in asdict(target).items() if name not in _NOT_FORM}


def _words(checkpoint: Checkpoint) -> dict[str, str]:
    return {"model": checkpoint.name, "weights_note": checkpoint.weights_note}
