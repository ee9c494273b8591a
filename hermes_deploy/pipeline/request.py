"""What a build is asked for, and what it answers. Validated before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hermes_deploy.errors import TargetError, UsageError
from hermes_deploy.pipeline.estimate import Estimate
from hermes_deploy.recipes import Recipe, check_target, load_recipe, override
from hermes_deploy.repository.manifest import reason_trouble
from hermes_deploy.targets import Target, target
from hermes_deploy.verification import POSITIONS

LEAST_POSITIONS = 512
"""Fewer held-out positions say next to nothing."""


@dataclass(frozen=True)
class BuildRequest:
    """`max_context` (tokens) and `max_slots` (chats) None: as the recipe says.

    `adapter`: folder of a PEFT LoRA that is merged first. `calibration`: JSONL file of chats instead of
    the packaged ones. `gate_positions`: about how many held-out positions are compared.
    `accept_degraded`: the reason to publish although the gate fails. `sign_with`: private key, PEM.
    `cache` False: stages of earlier builds are neither used nor kept.
    """

    model: str
    output: Path
    recipe: str = "int4-awq"
    targets: tuple[str, ...] = ("cpu",)
    max_context: int | None = None
    max_slots: int | None = None
    revision: str | None = None
    adapter: Path | None = None
    calibration: Path | None = None
    gate_positions: int = POSITIONS
    accept_degraded: str | None = None
    sign_with: Path | None = None
    cache: bool = True

    def resolve(self) -> tuple[Recipe, tuple[Target, ...]]:
        """The recipe with its overrides and the target records. Raises RecipeError, TargetError or UsageError."""
        if not self.targets:
            raise TargetError("no target was given; name at least one with --target")
        twice = {name for name in self.targets if self.targets.count(name) > 1}
        if twice:
            raise TargetError(f"target {', '.join(sorted(twice))} was given twice")
        if self.gate_positions < LEAST_POSITIONS:
            raise UsageError(
                f"--gate-positions {self.gate_positions} is too few to judge a model by; at least {LEAST_POSITIONS}"
            )
        if self.accept_degraded is not None and not self.accept_degraded.strip():
            raise UsageError("--accept-degraded needs the reason in words; it stands in the manifest for who serves it")
        if self.accept_degraded is not None and (trouble := reason_trouble(self.accept_degraded)):
            raise UsageError(f"the reason of --accept-degraded {trouble}. It is shown at every start of the server")
        recipe = load_recipe(self.recipe)
        changes = {"max_context": self.max_context, "max_slots": self.max_slots}
        recipe = override(recipe, {key: value for key, value in changes.items() if value is not None})
        targets = tuple(target(name) for name in self.targets)
        for each in targets:
            check_target(recipe, each)
        if self.calibration is not None and not recipe.calibration_chats:
            raise UsageError(f"recipe {recipe.name} has nothing to calibrate; leave --calibration out")
        return recipe, targets


@dataclass(frozen=True)
class BuildReport:
    """`stages`: wall seconds by stage, in order; `reused`: those that the cache had. `gates`: one line a target.

    `size`: bytes of the artifact. `estimate`: what was expected before any work. `degraded`: the
    reason under which a failed gate was accepted.
    """

    model: str
    recipe: str
    output: Path
    size: int
    estimate: Estimate
    gates: list[str] = field(default_factory=list)
    measures: dict[str, dict[str, float]] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    degraded: str | None = None


@dataclass(frozen=True)
class PlanReport:
    """What a build would do. Bytes; `problems`: why it does not fit here, empty when it does."""

    model: str
    recipe: str
    targets: list[str]
    estimate: Estimate
    free_memory: int
    free_cache: int
    free_output: int
    problems: list[str]
