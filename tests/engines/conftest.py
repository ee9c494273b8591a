"""Recipes and targets that the engine tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hermes_deploy.engines import EngineFiles, build_engine, serving_profiles
from hermes_deploy.recipes import Recipe, load_recipe
from hermes_deploy.targets import target
from tests.engines.decoder_onnx import Decoder, write_decoder

ALL = ("sm80", "sm86", "sm89", "sm120")
Build = Callable[..., EngineFiles]


RECIPES = {"fp16": "fp16", "int4": "int4-rtn", "int8": "int8-sq", "fp8": "fp8", "w4a8": "w4a8"}
"""The recipe that promises each form of the hand-made decoder."""


def recipe_with_fp16_head(name: str) -> Recipe:
    """The hand-made decoder keeps its head in fp16."""
    return load_recipe(name).model_copy(update={"head": "fp16"})


def build_decoder(
    folder: Path, decoder: Decoder, targets: tuple[str, ...], recipe: str = "", kept: tuple[str, ...] = ()
) -> EngineFiles:
    """Really builds a hand-made decoder into `folder/engine`; `recipe` defaults to its own form."""
    return build_engine(
        write_decoder(folder / "graph", decoder),
        [target(name) for name in targets],
        folder / "engine",
        recipe=recipe_with_fp16_head(recipe or RECIPES[decoder.form]),
        profiles=serving_profiles(prefill_chunk=32, max_slots=4),
        kept=kept,
    )


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def run(
        decoder: Decoder, targets: tuple[str, ...] = ALL, recipe: str = "", kept: tuple[str, ...] = ()
    ) -> EngineFiles:
        return build_decoder(tmp_path, decoder, targets, recipe, kept)

    return run
