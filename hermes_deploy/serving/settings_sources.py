"""Where the settings come from: defaults, one YAML file, HERMES_… variables, flags; each wins over those before it.

Every value of every source is checked, also one that another overrides, and all that is wrong is told at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hermes_deploy.errors import UsageError
from hermes_deploy.serving.settings import Settings, describe

PREFIX = "HERMES_"
LARGEST_FILE = 1 << 16
"""Bytes."""
_LOOKS_LIKE = 0.85
"""A variable that is this similar to one of ours is taken for a slip."""


@dataclass(frozen=True)
class Resolved:
    """`sources`: for each setting, where its value came from."""

    settings: Settings
    sources: Mapping[str, str]


def resolve(config: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Resolved:
    """`flags`: setting -> value of those that were given. Raises UsageError with all that is wrong."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    sources = dict.fromkeys(Settings.model_fields, "default")
    layers = [] if config is None else [(f"file {config}", read_file(config))]
    layers += [(_variable(name), {name: value}) for name, value in _from_environment(environment, problems)]
    layers += [(_flag(name), {name: value}) for name, value in flags.items()]
    for source, layer in layers:
        wrong = _wrong(layer)
        problems += [f"{source}: {problem}{_service_link(layer)}" for problem in wrong]
        if not wrong:
            values |= layer
            sources |= dict.fromkeys(layer, source)
    settings = Settings()
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [f"together: {problem}" for problem in describe(error)]
    if problems:
        raise UsageError("the settings are wrong:" + "".join(f"\n  {problem}" for problem in problems))
    return Resolved(settings, sources)


def from_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """`SETTING=VALUE` of --set. Raises UsageError for one without `=`; what they mean is not looked at."""
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise UsageError(f"--set {wrong[0]}: write it as SETTING=VALUE; --show-config lists the settings")
    return {name.replace("-", "_"): value for name, _, value in (pair.partition("=") for pair in pairs)}


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UsageError; what the keys mean is not looked at."""
    try:
        with path.open("rb") as stream:
            data = stream.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise UsageError(f"{path} is larger than {LARGEST_FILE:,} bytes; it holds no settings")
        found = yaml.load(data.decode(), _Loader)  # a SafeLoader
    except OSError as error:
        raise UsageError(f"the settings in {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UsageError(f"{path} holds a {type(found).__name__}; it must hold lines of SETTING: VALUE")
    return found


def shown(resolved: Resolved) -> str:
    """A YAML file that `--config` takes, with the source of each value."""
    lines = []
    for name, value in _public(resolved).items():
        text = f"{name}: {json.dumps(value, ensure_ascii=False)}"
        lines.append(f"{text:<40}  # {resolved.sources[name]}")
    return "\n".join(lines)


def shown_as_json(resolved: Resolved) -> dict[str, dict[str, Any]]:
    return {name: {"value": v, "from": resolved.sources[name]} for name, v in _public(resolved).items()}


def _public(resolved: Resolved) -> dict[str, Any]:
    """JSON values; secrets are shown as stars."""
    return resolved.settings.model_dump(mode="json")


def _wrong(layer: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values of one source. Its ports are compared with those of the others later."""
    problems = []
    for name, value in layer.items():
        try:
            Settings.model_validate({**_APART, name: value} if name in _APART else {name: value})
        except ValidationError as error:
            problems += describe(error)
    return problems


_APART: dict[str, Any] = {name: 0 for name in Settings.model_fields if name.endswith("_port")}
"""Ports that no port can collide with."""


def _from_environment(environment: Mapping[str, str], problems: list[str]) -> Iterator[tuple[str, Any]]:
    known = {_variable(name): name for name in Settings.model_fields}
    for variable, value in sorted(environment.items()):
        if variable in known:
            name = known[variable]
            # what a file writes as null is an empty variable
            yield name, None if value == "" and Settings.model_fields[name].default is None else value
        elif variable.startswith(PREFIX):
            # other programs and Kubernetes' service links use this prefix too: only a slip is told
            meant = difflib.get_close_matches(variable, known, 1, _LOOKS_LIKE)
            if meant and not _is_service_link(value):
                problems.append(f"{variable} is no setting; did you mean {meant[0]}?")


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_service_link(value: object) -> bool:
    return isinstance(value, str) and value.startswith("tcp://")


def _service_link(layer: Mapping[str, Any]) -> str:
    if any(_is_service_link(value) for value in layer.values()):
        return " (Kubernetes wrote this variable for a Service; set enableServiceLinks: false in the pod)"
    return ""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice (it would take the last) and aliases (which can stand for gigabytes)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(problem="aliases are not taken")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)
