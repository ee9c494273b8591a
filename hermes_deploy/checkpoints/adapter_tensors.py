"""adapter_model.safetensors of PEFT -> what each module gets; every tensor is used, every pair is whole.

Names: `base_model.model.` + the module + `.lora_A.weight`, `.lora_B.weight`, `.lora_embedding_A`,
`.lora_embedding_B`, `.lora_magnitude_vector`; a module that was saved whole: `.weight`; the weight below a
LoRA of the embedding or the head, which peft saves too: `.base_layer.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hermes_deploy.checkpoints.adapter_config import LoraConfig
from hermes_deploy.checkpoints.adapter_targets import (
    EMBEDDING_MODULE,
    HEAD_MODULE,
    Strength,
    saved_whole,
    targets,
)
from hermes_deploy.checkpoints.checkpoint import LazyTensor
from hermes_deploy.checkpoints.lora_merge import Lora
from hermes_deploy.errors import CheckpointError

_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+?)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|base_layer\.weight|weight)"
)


@dataclass(frozen=True)
class Changes:
    """By module: `lora`; `base`, a weight that takes the place of the model's own before anything else (and of
    its tied twin); `saved`, a weight that training left in the place of the model's own."""

    lora: Mapping[str, Lora]
    base: Mapping[str, LazyTensor]
    saved: Mapping[str, LazyTensor]


def read_changes(
    found: Mapping[str, LazyTensor],
    config: LoraConfig,
    weights: Mapping[str, tuple[int, ...]],
    *,
    tied: bool,
    where: str,
) -> Changes:
    """`weights`: module -> shape of its weight, for every module of the decoder; `tied`: of the head to the embedding.

    Raises CheckpointError for a tensor that has no use, one that is missing or misshapen, and another model's.
    """
    parts = _parts(found, weights, where)
    strengths = targets(config, [name for name, shape in weights.items() if len(shape) == 2], where)
    whole = set(saved_whole(config, weights))
    if tied and config.ensure_weight_tying:
        _tie(strengths, whole)
    if not parts:
        raise CheckpointError(f"{where} holds no tensor at all; save the adapter again")
    lora: dict[str, Lora] = {}
    base: dict[str, LazyTensor] = {}
    saved: dict[str, LazyTensor] = {}
    for module, tensors in parts.items():
        kinds = set(tensors)
        for part in sorted(kinds & {"weight", "base_layer.weight"}):
            _check_whole(tensors[part], module, weights[module], where)
        if module in strengths:
            lora[module] = _lora(tensors, module, strengths[module], config.use_dora, weights[module], where)
            if "base_layer.weight" in tensors:
                base[module] = tensors["base_layer.weight"]
        elif kinds == {"weight"} and module in whole:
            saved[module] = tensors["weight"]
        elif kinds == {"weight"} and module in (EMBEDDING_MODULE, HEAD_MODULE):
            base[module] = tensors["weight"]
        else:
            raise CheckpointError(
                f"{where}: {next(iter(tensors.values())).name} has no use: adapter_config.json names {module} neither "
                "in target_modules nor in modules_to_save. The two files are not of the same adapter."
            )
    missing = sorted((strengths.keys() | whole) - parts.keys())
    if missing:
        raise CheckpointError(
            f"{where} holds nothing for {missing[0]} ({len(missing)} of {len(strengths.keys() | whole)} modules that "
            "adapter_config.json names are missing). The file is incomplete; save the adapter again."
        )
    return Changes(lora, base, saved)


def _parts(
    found: Mapping[str, LazyTensor], weights: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, dict[str, LazyTensor]]:
    """Module -> part -> tensor."""
    parts: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in found.items():
        match = _PART.fullmatch(name.removeprefix(_PREFIX))
        if match is None or not name.startswith(_PREFIX):
            raise CheckpointError(
                f"{where}: {name} is no tensor of a LoRA adapter; expected {_PREFIX}MODULE.lora_A.weight and the like"
            )
        module = match["module"]
        if module not in weights:
            experts = " It is of a mixture of experts, which is not built." if "expert" in module else ""
            raise CheckpointError(
                f"{where}: {name} changes {module}, which the model does not have; "
                f"the adapter is for another model.{experts}"
            )
        parts.setdefault(module, {})[match["part"]] = tensor
    return parts


def _tie(strengths: dict[str, Strength], whole: set[str]) -> None:
    """peft's ensure_weight_tying: what the one of the two gets, the other gets too."""
    both = (EMBEDDING_MODULE, HEAD_MODULE)
    for module, other in (both, both[::-1]):
        if module in strengths:
            strengths.setdefault(other, strengths[module])
        if module in whole:
            whole.add(other)


def _lora(
    tensors: Mapping[str, LazyTensor],
    module: str,
    strength: Strength,
    dora: bool,
    weight: tuple[int, ...],
    where: str,
) -> Lora:
    embedding = module == EMBEDDING_MODULE
    part_a, part_b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    outputs, inputs = weight[::-1] if embedding else weight
    expected: dict[str, tuple[int, ...]] = {part_a: (strength.rank, inputs), part_b: (outputs, strength.rank)}
    if dora:
        expected["lora_magnitude_vector"] = (outputs,)
    for part, shape in expected.items():
        if part not in tensors:
            raise CheckpointError(
                f"{where}: {_PREFIX}{module}.{part} is missing. The file is incomplete; save the adapter again."
            )
        if tensors[part].shape != shape:
            raise _misshapen(tensors[part], shape, module, strength.rank, where)
    extra = sorted(tensors.keys() - expected.keys() - {"base_layer.weight"})
    if extra or ("base_layer.weight" in tensors and module not in (EMBEDDING_MODULE, HEAD_MODULE)):
        part = extra[0] if extra else "base_layer.weight"
        hint = " (use_dora is false)" if part == "lora_magnitude_vector" else ""
        raise CheckpointError(f"{where}: {tensors[part].name} has no use in a LoRA of {module}{hint}")
    return Lora(tensors[part_a], tensors[part_b], tensors.get("lora_magnitude_vector"), strength.scaling, embedding)


def _check_whole(tensor: LazyTensor, module: str, shape: tuple[int, ...], where: str) -> None:
    if tensor.shape != shape:
        raise _misshapen(tensor, shape, module, None, where)


def _misshapen(
    tensor: LazyTensor, shape: tuple[int, ...], module: str, rank: int | None, where: str
) -> CheckpointError:
    found = f"{where}: {tensor.name} has shape {list(tensor.shape)}, {list(shape)} is expected"
    if module in (EMBEDDING_MODULE, HEAD_MODULE):
        return CheckpointError(
            f"{found}. If tokens were added, the vocabulary changed, which is not merged: do it with peft "
            "(resize_token_embeddings, merge_and_unload, save_pretrained of model and tokenizer) and give that folder."
        )
    because = "the adapter is for another model" + (f", or its rank is not {rank}" if rank else "")
    return CheckpointError(f"{found}: {because}")
