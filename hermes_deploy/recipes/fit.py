"""Which recipes a target can take: asked before any work. Pure but for reading packaged recipes."""

from __future__ import annotations

from hermes_deploy.errors import TargetError
from hermes_deploy.recipes.reading import load_recipe, recipe_names
from hermes_deploy.recipes.recipe import Recipe
from hermes_deploy.targets import TARGETS, Target


def recipes_for(target: Target) -> list[str]:
    """Names of the packaged recipes that `target` can take."""
    return [name for name in recipe_names() if load_recipe(name).trouble_on(target) is None]


def check_target(recipe: Recipe, target: Target) -> None:
    """Raises TargetError when `target` cannot take `recipe`, naming the recipes and targets that go together."""
    trouble = recipe.trouble_on(target)
    if trouble is None:
        return
    takers = [t.name for t in TARGETS.values() if recipe.trouble_on(t) is None]
    works = f"Recipe {recipe.name!r} works on: {', '.join(takers)}." if takers else "No target takes it."
    raise TargetError(
        f"recipe {recipe.name!r} cannot be had on target {target.name!r} ({target.title}): {trouble}. "
        f"Recipes that {target.name} takes: {', '.join(recipes_for(target))}. {works}"
    )
