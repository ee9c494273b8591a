"""Recipes from YAML: by name from this folder, or a person's own file by path.

`extends: NAME` takes the keys of a packaged recipe first; the file's own keys then replace them,
nested mappings key by key, and `name` and `description` are never taken over. What comes from
outside is bounded; everything that is wrong is a RecipeError that names the file and the key.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hermes_deploy.errors import RecipeError
from hermes_deploy.recipes.recipe import Recipe

LARGEST_FILE = 1 << 16
"""Bytes of a recipe file; ours have less than 2,000."""

_OWN = ("name", "description")


def recipe_names() -> list[str]:
    """Names of the recipes that are packaged."""
    folder = resources.files(__package__)
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_path: str) -> Recipe:
    """The packaged recipe of that name, or the recipe in a file: what ends in .yaml or .yml or has a slash.

    Raises RecipeError for an unknown name, a file that cannot be read, or an invalid recipe.
    """
    if _is_path(name_or_path):
        return parse_recipe(_read(Path(name_or_path)), name_or_path)
    _check_name(name_or_path, "unknown recipe")
    return _packaged(name_or_path)


def parse_recipe(text: str, where: str) -> Recipe:
    """Validates YAML text of a person's own recipe. `where` names the source in the message."""
    recipe = _validated(_composed(_mapping(text, where), where, ()), f"recipe {where}")
    if recipe.name in recipe_names():
        raise RecipeError(f"recipe {where}: the name {recipe.name!r} is a packaged recipe's; give it one of its own")
    return recipe


def override(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """`recipe` with some keys replaced, validated again. Raises RecipeError for a value out of range."""
    return _validated({**recipe.model_dump(), **changes}, f"recipe {recipe.name}, as asked")


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or "/" in name


def _check_name(name: object, what: str) -> None:
    names = recipe_names()
    if name in names:
        return
    wanted = str(name)
    near = [n for n in names if n.startswith(f"{wanted}-")] or difflib.get_close_matches(wanted, names, 2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ";"
    raise RecipeError(f"{what} {name!r}{hint} Recipes are: {', '.join(names)}, or the path of a .yaml file")


def _read(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited on for ever
            raise RecipeError(f"recipe {path}: is not a regular file")
        with path.open("rb") as stream:
            data = stream.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise RecipeError(f"recipe {path}: larger than {LARGEST_FILE:,} bytes; it is no recipe")
        return data.decode("utf-8")
    except OSError as error:
        raise RecipeError(f"recipe {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"recipe {path}: is not UTF-8 text") from None


def _packaged(name: str) -> Recipe:
    return _validated(_composed(_packaged_mapping(name), name, (name,)), f"recipe {name}")


def _packaged_mapping(name: str) -> dict[str, Any]:
    return _mapping((resources.files(__package__) / f"{name}.yaml").read_text(encoding="utf-8"), name)


def _composed(data: dict[str, Any], where: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """`data` over the recipe that it extends; `seen` are the names on the way here."""
    if "extends" not in data:
        return data
    base = data["extends"]
    _check_name(base, f"recipe {where}: extends unknown recipe")
    if base in seen:
        raise RecipeError(f"recipe {where}: extends itself: {' -> '.join((*seen, base))}")
    below = _composed(_packaged_mapping(base), base, (*seen, base))
    return _merged({k: v for k, v in below.items() if k not in _OWN}, {k: v for k, v in data.items() if k != "extends"})


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key that stands twice (it would take the last) and aliases (a few
    hundred bytes of them can stand for gigabytes)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(problem="aliases are not taken")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in found:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            found.add(key.value)
        return super().construct_mapping(node, deep)


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, _PlainLoader)  # it is a SafeLoader
    # thousands of brackets are no YAMLError, nor is a date or a number that is none (2026-99-99)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"recipe {where}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {where}: expected a mapping, found {type(data).__name__}")
    return data


def _validated(data: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        problems = "; ".join(
            ".".join(str(p) for p in e["loc"])
            + (f" is {e['input']!r}" if isinstance(e["input"], int | float | str) else "")
            + (": " if e["loc"] else "")
            + e["msg"].removeprefix("Value error, ")
            for e in faults
        )
        about_keys = any(e["type"] in ("extra_forbidden", "missing") for e in faults)
        keys = f" Keys are: extends, {', '.join(Recipe.model_fields)}." if about_keys else ""
        raise RecipeError(f"{where}: {problems}.{keys}") from None
