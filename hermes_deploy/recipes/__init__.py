"""Recipes by name: precision + calibration + gate thresholds + context and slots, in YAML, validated."""

from hermes_deploy.recipes.recipe import GateThresholds, Recipe, load_recipe, override, recipe_names

__all__ = ["GateThresholds", "Recipe", "load_recipe", "override", "recipe_names"]
