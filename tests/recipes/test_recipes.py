"""Recipes are composed and validated, and say what they take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hermes_deploy.errors import RecipeError, TargetError
from hermes_deploy.recipes import check_target, load_recipe, override, parse_recipe, recipe_names, recipes_for
from hermes_deploy.recipes.recipe import SMALL_MODEL
from hermes_deploy.targets import TARGETS, target

NAMES = ["fp16", "fp32", "fp8", "int4-awq", "int4-awq-kv8", "int4-rtn", "int8-sq", "nvfp4", "w4a8"]
GOOD = """
name: x
description: y
linear: int4
method: rtn
head: int4
gate: {max_kl: 1, min_top1: 0.5, max_perplexity_ratio: 2, max_tensor_error: 1}
"""


def test_every_recipe_that_ships_is_valid_and_named_as_its_file() -> None:
    assert recipe_names() == NAMES
    assert [load_recipe(name).name for name in recipe_names()] == recipe_names()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "colour: red\n", "colour is 'red': Extra inputs are not permitted.*Keys are: extends, name, descr"),
        (GOOD.replace("linear: int4", "linear: int3"), "linear"),
        (GOOD.replace("max_kl: 1", "max_kl: -1"), "gate.max_kl"),
        (GOOD.replace("max_kl: 1", "max_kl: .inf"), "gate.max_kl is inf"),
        (GOOD.replace("description: y\n", ""), "description: Field required"),
        (GOOD.replace("name: x", "name: ../x"), "name is '../x'"),
        (GOOD.replace("name: x", "name: fp8"), "the name 'fp8' is a packaged recipe's"),
        (GOOD + "max_slots: yes\n", "max_slots is True: Input should be a valid integer"),
        (GOOD + "head: fp16\n", "'head' stands twice"),
        (GOOD + "kv: int4\n", "kv is 'int4': Input should be 'activation' or 'int8'"),
        (GOOD + "kv: int8\n", "a kv of int8 has scales from chats; it needs calibration_chats"),
        (
            GOOD + "kv: int8\ncalibration_chats: 4\n",
            "max_cache_misfit is asked of a kv of int8, where it must be given",
        ),
        (GOOD.replace("max_kl: 1", "max_kl: 1, max_cache_misfit: 1"), "max_cache_misfit is asked of a kv of int8"),
        (GOOD.replace("method: rtn", "method: smoothquant"), "int4 linears are come by with method rtn or awq"),
        (GOOD.replace("method: rtn", "method: awq"), "int4 with method awq needs calibration_chats"),
        (GOOD.replace("linear: int4", "linear: fp8"), "fp8 with method rtn needs calibration_chats"),
        (GOOD.replace("int4", "fp16") + "block_size: 64\n", "fp16 linears are come by with method none"),
        (GOOD.replace("int4", "fp16").replace("rtn", "none") + "block_size: 64\n", "block_size has no effect"),
        (GOOD.replace("int4", "fp16").replace("rtn", "none") + "calibration_chats: 4\n", "have no effect with method"),
        ("- a list", "expected a mapping, found list"),
        ("a: [unclosed", "not valid YAML"),
        ("a: &a [1]\nb: *a", "aliases are not taken"),
        ("[" * 20000, "not valid YAML"),
        ("name: 2026-99-99", "not valid YAML: month must be"),
        ("max_slots: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
        ("extends: int3\n", "test: extends unknown recipe 'int3'"),
        ("extends: [fp8]\n", r"extends unknown recipe \['fp8'\]"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_key(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text, "test")


def test_a_recipe_that_extends_another_changes_only_what_it_names() -> None:
    mine = parse_recipe("name: mine\ndescription: d\nextends: int4-awq\nhead: int8\ngate: {max_kl: 0.01}\n", "test")
    theirs = load_recipe("int4-awq").model_dump()
    assert mine.model_dump() == {
        **theirs,
        "name": "mine",
        "description": "d",
        "head": "int8",
        "gate": {**theirs["gate"], "max_kl": 0.01},
    }


def test_a_recipe_that_extends_another_still_says_itself_what_it_is() -> None:
    with pytest.raises(RecipeError, match="name: Field required; description: Field required"):
        parse_recipe("extends: fp8\n", "test")


def test_recipes_that_extend_each_other_in_a_circle_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = {"fp8": {"extends": "fp16"}, "fp16": {"extends": "fp8"}}
    monkeypatch.setattr("hermes_deploy.recipes.reading._packaged_mapping", lambda name: circle[name])
    with pytest.raises(RecipeError, match="extends itself: fp8 -> fp16 -> fp8"):
        load_recipe("fp8")


def test_a_recipe_can_be_a_persons_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: int4-rtn\nname: mine\ndescription: d\nblock_size: 64\n", encoding="utf-8")
    assert load_recipe(str(path)).block_size == 64
    path.write_text("extends: int4-rtn\nname: mine\ndescription: d\nblok_size: 64\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"recipe .*mine\.yaml: blok_size is 64"):
        load_recipe(str(path))
    path.write_bytes(b"#" * (1 << 17))
    with pytest.raises(RecipeError, match=r"mine\.yaml: larger than 65,536 bytes"):
        load_recipe(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"mine\.yaml: is not UTF-8"):
        load_recipe(str(path))
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match=r"pipe\.yaml: is not a regular file"):
        load_recipe(str(tmp_path / "pipe.yaml"))
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot be read: No such file"):
        load_recipe(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("int4", "did you mean int4-awq or int4-awq-kv8 or int4-rtn?"),
        ("fp-8", "did you mean fp8"),
        ("q4_k_m", "'q4_k_m'; Recipes are"),
    ],
)
def test_an_unknown_name_is_answered_with_the_names_there_are(wrong: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as refusal:
        load_recipe(wrong)
    assert f"Recipes are: {', '.join(NAMES)}" in str(refusal.value)


def test_an_unknown_target_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(TargetError, match="targets are: cpu, cuda, sm80"):
        target("h100")


def test_an_override_is_validated_like_the_file() -> None:
    assert override(load_recipe("int4-awq"), {"max_context": 512}).max_context == 512
    with pytest.raises(RecipeError, match=r"max_context is 0: Input should be greater than or equal to 16\.$"):
        override(load_recipe("int4-awq"), {"max_context": 0})


def test_a_large_model_is_judged_more_strictly_than_a_small_one() -> None:
    for name in NAMES:
        recipe = load_recipe(name)
        if recipe.linear in ("fp16", "fp32"):
            continue
        large, small = recipe.thresholds(SMALL_MODEL), recipe.thresholds(SMALL_MODEL - 1)
        assert large.max_kl < small.max_kl
        assert large.min_top1 > small.min_top1


def test_a_target_refuses_what_it_has_no_kernels_for_and_names_the_recipes_that_it_takes() -> None:
    for name in recipe_names():
        recipe = load_recipe(name)
        for each in TARGETS.values():
            if name in recipes_for(each):
                check_target(recipe, each)
                continue
            with pytest.raises(TargetError) as refusal:
                check_target(recipe, each)
            assert f"Recipes that {each.name} takes: {', '.join(recipes_for(each))}" in str(refusal.value)


@pytest.mark.parametrize(
    ("recipe", "where", "changes", "says"),
    [
        ("fp8", "sm86", {}, "no fp8 kernels.*sm86 takes: fp16, int4-awq, int4-rtn.*'fp8' works on: sm89, sm90, sm120"),
        ("int4-rtn", "sm80", {"head": "int8"}, "a head in int8 is not one of its .fp16, int4.*works on: cpu, cuda"),
        ("int4-rtn", "cpu", {"head": "fp16"}, "a head in fp16 is not one of its .fp32, int4, int8"),
        (
            "int4-awq-kv8",
            "sm89",
            {},
            "cache in int8 is not one of its .fp16.: TensorRT's KVCacheUpdate.*works on: cpu.$",
        ),
        ("int4-awq-kv8", "cuda", {}, "cache in int8 is not one of its .fp16.: the gate runs on a CPU.*works on: cpu.$"),
        ("int4-rtn", "sm80", {"block_size": 256}, r"blocks of 256 are not among its block sizes .32, 64, 128"),
    ],
)
def test_what_a_target_cannot_take_is_refused_with_what_it_can(
    recipe: str, where: str, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(TargetError, match=says):
        check_target(override(load_recipe(recipe), changes), target(where))
