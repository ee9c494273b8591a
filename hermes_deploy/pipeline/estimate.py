"""How much memory and disk each stage will take, from shapes alone. Reads no weight. Pure.

Bytes; W: all weights of a variant as they are stored, M: the largest matrix of the graph in float32,
H: half a layer (its larger half) in float32. Meant to be a little above what was measured
(docs/pipeline.md has the table); page cache is not counted, the kernel takes that back.

    calibrate, reference   PROCESS + H + embedding + head + what is kept of all positions
    graph                  PROCESS + 3 M           source, joined, codes
    gate                   PROCESS + 2.25 W + head + logits and cache of one text
    gate, portable graph   PROCESS + 3 M + head + logits and caches of several texts    one matrix in float32 at a time
    engine                 PROCESS + ENGINE + 2.5 W     TensorRT's own process, its result streamed to disk
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from hermes_deploy.checkpoints.checkpoint import DecoderConfig
from hermes_deploy.errors import BuildError
from hermes_deploy.pipeline.free_space import Room
from hermes_deploy.pipeline.plan import BuildPlan, PlannedVariant
from hermes_deploy.pipeline.variants import VariantSize
from hermes_deploy.quantization.compensate import RANK
from hermes_deploy.recipes import Recipe

MB = 1_000_000
PROCESS = 600 * MB
"""Python with its packages, and what earlier stages leave in its heap."""
ENGINE = 600 * MB
"""TensorRT's libraries and their tables. Measured in its process: int4 988 MB for an engine of 169 MB, 8.1 GB for
3.97 GB; fp8 1,166 MB for 277 MB, 8.7 GB for 7.82 GB; fp16 1,325 MB for 349 MB. Mapped pages, which the kernel can
take back, come on top: 12.1 and 15.0 GB for the large ones."""
SMALL_FILES = 20 * MB
"""Tokenizer, manifest, reports and licences of an artifact."""


@dataclass(frozen=True)
class StageNeed:
    """`memory`: peak of the stage, bytes. `disk`: bytes that it leaves in the cache. `reused`: it needs neither."""

    stage: str
    memory: int
    disk: int
    reused: bool


@dataclass(frozen=True)
class Estimate:
    """`stages` in the order of the build; `artifact`: bytes of the published folder. `caches`: bytes of keys
    and values, by variant, of a server whose every slot is full; not needed for the build."""

    stages: tuple[StageNeed, ...]
    artifact: int
    caches: dict[str, int] = field(default_factory=dict)

    @property
    def to_run(self) -> list[StageNeed]:
        return [need for need in self.stages if not need.reused]

    @property
    def cache(self) -> int:
        """Bytes that this build adds to the cache."""
        return sum(need.disk for need in self.to_run)

    @property
    def memory(self) -> int:
        """Peak of the build; opening the checkpoint takes what any process takes."""
        return max([PROCESS, *(need.memory for need in self.to_run)])


def estimate(
    plan: BuildPlan,
    config: DecoderConfig,
    sizes: Mapping[str, VariantSize],
    positions: Mapping[str, int],
    reused: Collection[str],
    recipe: Recipe,
) -> Estimate:
    """`sizes` by variant; `positions`: tokens of "calibration" and "heldout" texts and of the "longest" of these;
    `reused`: digests of keys; `recipe`: context and slots of the server."""
    shapes = _Shapes(config)
    needs = [(plan.reference, shapes.decoder(positions["heldout"], kept=2), positions["heldout"] * shapes.hidden)]
    artifact = SMALL_FILES
    for planned in plan.variants:
        size = sizes[planned.variant.name]
        if planned.calibrate is not None:
            # of each input its scale, its power and RANK directions
            inputs = 2 * config.hidden_size + config.heads * config.head_dim + config.intermediate_size
            disk = 4 * (RANK + 2) * config.layers * inputs
            needs.append((planned.calibrate, shapes.decoder(positions["calibration"], kept=shapes.kept), disk))
        needs.append((planned.graph, PROCESS + 3 * size.largest, size.stored))
        needs.append((planned.gate, _gate(planned, shapes, size, positions["longest"]), MB))
        needs += [(key, PROCESS + ENGINE + 5 * size.stored // 2, size.stored) for _, key in planned.engines]
        artifact += size.stored * (1 if planned.variant.served else len(planned.engines))
    stages = tuple(StageNeed(key.name, memory, disk, key.digest in reused) for key, memory, disk in needs)
    tokens = recipe.max_slots * recipe.max_context
    return Estimate(stages, artifact, {name: tokens * size.token for name, size in sizes.items()})


class _Shapes:
    """Sizes in bytes of float32 things of this decoder."""

    def __init__(self, config: DecoderConfig) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.hidden = 4 * hidden
        self.logits = 4 * config.vocab_size
        self.head = self.logits * hidden
        self.half_layer = 4 * hidden * max(3 * inner, 2 * query + 2 * key)
        self.kept = -(-(3 * inner + 2 * hidden) // hidden)
        """Rows of `hidden` that one position takes while a layer is observed."""

    def decoder(self, positions: int, kept: int) -> int:
        return PROCESS + self.half_layer + 2 * self.head + positions * kept * self.hidden


def _gate(planned: PlannedVariant, shapes: _Shapes, size: VariantSize, longest: int) -> int:
    rows = max(1, (192 << 20) // (256 * shapes.logits))  # texts at once, up to 192 MiB of logits
    if planned.variant.served:  # one text; ONNX Runtime packs the weights once more
        return PROCESS + 9 * size.stored // 4 + shapes.head + 4 * 256 * shapes.logits + longest * size.token
    logits = 4 * max(192 << 20, 256 * shapes.logits)
    return PROCESS + 3 * size.largest + shapes.head + logits + rows * longest * size.token


def problems(need: Estimate, memory: Room, cache: Room, output: Room) -> list[str]:
    """Why this build cannot fit, each with its numbers and what to do; empty when it fits."""
    found = []
    hungry = [stage for stage in need.to_run if stage.memory > memory.free]
    if hungry:
        most = max(hungry, key=lambda stage: stage.memory)
        found.append(
            f"stage {most.stage} needs about {gigabytes(most.memory)} of memory, and {gigabytes(memory.free)} "
            f"{memory.where} are free. Use a recipe with smaller weights, build fewer targets, or use a larger machine"
        )
    wanted = [(cache, need.cache, "for stages in the cache"), (output, need.artifact, "for the artifact")]
    for room in {cache.device: cache, output.device: output}.values():
        here = [(size, what) for place, size, what in wanted if place.device == room.device]
        total = sum(size for size, _ in here)
        if total > room.free:
            parts = " and ".join(f"{gigabytes(size)} {what}" for size, what in here)
            found.append(
                f"it writes about {parts}, and {gigabytes(room.free)} {room.where} are free. Free some space "
                "(hermes-deploy cache prune), build fewer targets, use a recipe with smaller weights, or name a place "
                "on another disk in --output or HERMES_DEPLOY_STAGES"
            )
    return found


def refuse(words: list[str]) -> None:
    """Raises BuildError when there are any."""
    if words:
        raise BuildError(f"this build does not fit here: {'; '.join(words)}. Nothing was done.")


def gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 10**9 else f"{size / 1e6:,.0f} MB"
