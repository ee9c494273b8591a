"""Recipes: precision + calibration + gate thresholds + context and slots, in YAML, composed and validated."""

from hermes_deploy.recipes.fit import check_target, recipes_for
from hermes_deploy.recipes.reading import load_recipe, override, parse_recipe, recipe_names
from hermes_deploy.recipes.recipe import GateThresholds, Head, Method, Recipe

__all__ = [
    "GateThresholds",
    "Head",
    "Method",
    "Recipe",
    "check_target",
    "load_recipe",
    "override",
    "parse_recipe",
    "recipe_names",
    "recipes_for",
]
