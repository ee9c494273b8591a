"""Which modules of a decoder a LoRA configuration changes, and with which rank and alpha: peft's own rules.

Takes module names (`model.layers.0.self_attn.q_proj`), knows no tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hermes_deploy.checkpoints.adapter_config import ALL_LINEAR, LoraConfig
from hermes_deploy.checkpoints.untrusted_patterns import matched_names

EMBEDDING_MODULE = "model.embed_tokens"
HEAD_MODULE = "lm_head"

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Strength:
    """`scaling`: the factor of B @ A."""

    rank: int
    scaling: float


def targets(config: LoraConfig, modules: Sequence[str], where: str) -> dict[str, Strength]:
    """`modules`: linears and the embedding. Gives those that carry a LoRA. Raises CheckpointError."""
    chosen = _chosen(config, modules, where)
    chosen = _without_excluded(config, chosen, where)
    ranks = _by_pattern(config.rank_pattern or {}, chosen, config.r, where)
    alphas = _by_pattern(config.alpha_pattern or {}, chosen, config.lora_alpha, where)
    return {name: Strength(int(ranks[name]), config.scaling(alphas[name], int(ranks[name]))) for name in chosen}


def saved_whole(config: LoraConfig, modules: Iterable[str]) -> list[str]:
    """Modules that `modules_to_save` names; as in peft the end of a name is enough, a parent takes its children."""
    ends = config.modules_to_save or ()
    return [name for name in modules if any(parent.endswith(ends) for parent in _with_parents(name))]


def _chosen(config: LoraConfig, modules: Sequence[str], where: str) -> list[str]:
    wanted = config.target_modules
    if isinstance(wanted, str):
        if wanted.lower() == ALL_LINEAR:
            return [name for name in modules if name not in (EMBEDDING_MODULE, HEAD_MODULE)]
        return matched_names([wanted], modules, where)[0]
    layers = config.transforms
    return [name for name in modules if name in wanted or (_ends_with(name, wanted) and _in_layers(name, layers))]


def _without_excluded(config: LoraConfig, modules: Sequence[str], where: str) -> list[str]:
    excluded = config.exclude_modules or ()
    if isinstance(excluded, str):
        gone = set(matched_names([excluded], modules, where)[0])
    else:
        gone = {name for name in modules if name in excluded or _ends_with(name, excluded)}
    whole = config.modules_to_save or ()
    gone |= {name for name in modules if any(f".{each}." in f".{name}." for each in whole)}
    return [name for name in modules if name not in gone]


def _by_pattern(patterns: Mapping[str, float], modules: Sequence[str], default: float, where: str) -> dict[str, float]:
    """The value of the first pattern that matches the end of a module's name."""
    result = dict.fromkeys(modules, default)
    found = matched_names([rf"(.*\.)?({pattern})" for pattern in patterns], modules, where)
    # from the last to the first, so that the first one stays
    for value, names in reversed(list(zip(patterns.values(), found, strict=True))):
        result |= dict.fromkeys(names, value)
    return result


def _ends_with(name: str, ends: Iterable[str]) -> bool:
    return name.endswith(tuple(f".{end}" for end in ends))


def _in_layers(name: str, layers: frozenset[int] | None) -> bool:
    layer = _LAYER.match(name)
    return layers is None or (layer is not None and int(layer.group(1)) in layers)


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
