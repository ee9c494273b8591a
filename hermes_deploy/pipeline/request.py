"""What a build is asked for, and what it answers. Validated before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hermes_deploy.errors import TargetError
from hermes_deploy.recipes import Recipe, check_target, load_recipe, override
from hermes_deploy.targets import Target, target


@dataclass(frozen=True)
class BuildRequest:
    """`max_context` (tokens) and `max_slots` (chats) None: as the recipe says.

    `cache` False: stages of earlier builds are neither used nor kept.
    """

    model: str
    output: Path
    recipe: str = "int4-awq"
    targets: tuple[str, ...] = ("cpu",)
    max_context: int | None = None
    max_slots: int | None = None
    revision: str | None = None
    cache: bool = True

    def resolve(self) -> tuple[Recipe, tuple[Target, ...]]:
        """The recipe with its overrides and the target records. Raises RecipeError or TargetError."""
        if not self.targets:
            raise TargetError("no target was given; name at least one with --target")
        twice = {name for name in self.targets if self.targets.count(name) > 1}
        if twice:
            raise TargetError(f"target {', '.join(sorted(twice))} was given twice")
        recipe = load_recipe(self.recipe)
        changes = {"max_context": self.max_context, "max_slots": self.max_slots}
        recipe = override(recipe, {key: value for key, value in changes.items() if value is not None})
        targets = tuple(target(name) for name in self.targets)
        for each in targets:
            check_target(recipe, each)
        return recipe, targets


@dataclass(frozen=True)
class BuildReport:
    """`stages`: wall seconds by stage, in order; `reused`: those that the cache had. `gates`: one line a target.

    `size`: bytes of the artifact.
    """

    model: str
    recipe: str
    output: Path
    size: int
    gates: list[str] = field(default_factory=list)
    measures: dict[str, dict[str, float]] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
