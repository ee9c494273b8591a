"""A recipe: what `build --recipe NAME` does. YAML beside this file, one file a recipe.

Takes a name, gives a frozen `Recipe`. An unknown key, a missing one or a value out of range is a
RecipeError that names it. Knows nothing of checkpoints or engines.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermes_deploy.errors import RecipeError, TargetError
from hermes_deploy.targets import TARGETS, Precision, Target


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GateThresholds(_Frozen):
    """The build fails over any of these, each against the unquantized fp32 reference.

    `max_kl`: mean KL(reference || candidate) over held-out positions, nats.
    `min_top1`: share of positions where both pick the same token, 0..1.
    `min_top1_confident`: the same among positions where the reference's best logit is more than 0.5
    above its second; None = not asked.
    `max_perplexity_ratio`: candidate perplexity / reference perplexity on the same text.
    `max_tensor_error`: worst relative error ||dequantized - source|| / ||source|| of any
    head-sized group of any linear; catches damage too local to move an average.
    """

    max_kl: float = Field(gt=0)
    min_top1: float = Field(gt=0, le=1)
    min_top1_confident: float | None = Field(default=None, gt=0, le=1)
    max_perplexity_ratio: float = Field(gt=0)
    max_tensor_error: float = Field(gt=0)


SMALL_MODEL = 1_000_000_000
"""Parameters."""


class Recipe(_Frozen):
    """`linear` is the precision of every matrix in the decoder, `head` of the output head.

    `small_model_gate` replaces `gate` for models under SMALL_MODEL parameters, which lose far more
    in few bits: one threshold for both would let a damaged 7B pass.

    `max_context` in tokens and `max_slots` in concurrent chats are defaults that `build` flags
    override; the built artifact carries the values and `serve` may only lower them.
    """

    name: str
    description: str
    linear: Precision
    head: Precision | Literal["int8"]
    calibration_chats: int = Field(default=0, ge=0)
    max_context: int = Field(default=2048, ge=16, le=1 << 20)
    max_slots: int = Field(default=8, ge=1, le=1024)
    gate: GateThresholds
    small_model_gate: GateThresholds | None = None

    def thresholds(self, parameters: int) -> GateThresholds:
        """What the gate asks of a model with that many parameters."""
        if self.small_model_gate is not None and parameters < SMALL_MODEL:
            return self.small_model_gate
        return self.gate

    def check_target(self, target: Target) -> None:
        """Raises TargetError when `target` cannot take this recipe, naming what would work."""
        if self.linear in target.precisions:
            return
        takers = [t.name for t in TARGETS.values() if self.linear in t.precisions]
        raise TargetError(
            f"recipe {self.name!r} cannot be had on target {target.name!r} ({target.title}): it has no "
            f"{self.linear} kernels. {target.name} takes: {', '.join(target.precisions)}. "
            f"{self.linear} works on: {', '.join(takers)}."
        )


def recipe_names() -> list[str]:
    folder = resources.files(__package__)
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises RecipeError for an unknown name or an invalid file."""
    if name not in recipe_names():
        raise RecipeError(f"unknown recipe {name!r}; recipes are: {', '.join(recipe_names())}")
    text = (resources.files(__package__) / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_recipe(text, name)


def parse_recipe(text: str, where: str) -> Recipe:
    """Validates YAML text. `where` names the source in the message."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {where}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {where}: expected a mapping, found {type(data).__name__}")
    return _validated(data, f"recipe {where}")


def override(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """`recipe` with some keys replaced, validated again. Raises RecipeError for a value out of range."""
    return _validated({**recipe.model_dump(), **changes}, f"recipe {recipe.name}, as asked")


def _validated(data: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        problems = "; ".join(
            ".".join(str(p) for p in e["loc"])
            + (f" is {e['input']!r}: " if isinstance(e["input"], int | float | str) else ": ")
            + e["msg"]
            for e in faults
        )
        about_keys = any(e["type"] in ("extra_forbidden", "missing") for e in faults)
        keys = f" Keys are: {', '.join(Recipe.model_fields)}." if about_keys else ""
        raise RecipeError(f"{where}: {problems}.{keys}") from None
