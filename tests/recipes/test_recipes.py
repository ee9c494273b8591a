"""Recipes are validated, and say what they take."""

from __future__ import annotations

import pytest

from hermes_deploy.errors import RecipeError, TargetError
from hermes_deploy.recipes import load_recipe, override, recipe_names
from hermes_deploy.recipes.recipe import SMALL_MODEL, parse_recipe
from hermes_deploy.targets import TARGETS, target

GOOD = """
name: x
description: y
linear: int4
head: int4
gate: {max_kl: 1, min_top1: 0.5, max_perplexity_ratio: 2, max_tensor_error: 1}
"""


def test_every_recipe_that_ships_is_valid_and_named_as_its_file() -> None:
    assert recipe_names() == ["fp16", "fp32", "fp8", "int4"]
    assert [load_recipe(name).name for name in recipe_names()] == recipe_names()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "colour: red\n", "colour is 'red': Extra inputs are not permitted.*Keys are: name, description"),
        (GOOD.replace("linear: int4", "linear: int3"), "linear"),
        (GOOD.replace("max_kl: 1", "max_kl: -1"), "gate.max_kl"),
        (GOOD.replace("description: y\n", ""), "description: Field required"),
        ("- a list", "expected a mapping, found list"),
        ("a: [unclosed", "not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_key(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text, "test")


def test_an_unknown_name_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(RecipeError, match="recipes are: fp16, fp32, fp8, int4"):
        load_recipe("int5")
    with pytest.raises(TargetError, match="targets are: cpu, cuda, sm80"):
        target("h100")


def test_an_override_is_validated_like_the_file() -> None:
    assert override(load_recipe("int4"), {"max_context": 512}).max_context == 512
    with pytest.raises(RecipeError, match=r"max_context is 0: Input should be greater than or equal to 16\.$"):
        override(load_recipe("int4"), {"max_context": 0})


def test_a_large_model_is_judged_more_strictly_than_a_small_one() -> None:
    for name in ("int4", "fp8"):
        recipe = load_recipe(name)
        large, small = recipe.thresholds(SMALL_MODEL), recipe.thresholds(SMALL_MODEL - 1)
        assert large.max_kl < small.max_kl
        assert large.min_top1 > small.min_top1


def test_a_target_refuses_what_it_has_no_kernels_for_and_names_who_has() -> None:
    for name in recipe_names():
        recipe = load_recipe(name)
        for each in TARGETS.values():
            if recipe.linear in each.precisions:
                recipe.check_target(each)
                continue
            with pytest.raises(TargetError, match=f"{each.name} takes: "):
                recipe.check_target(each)
