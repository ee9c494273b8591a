"""adapter_config.json of PEFT -> a validated `LoraConfig`. Reads values, no tensors.

Only LoRA and DoRA are merged; whatever else changes what a model computes is refused by name. A key that
this version does not know must be empty: a variant of next year must not pass for plain LoRA.
Meanings: https://huggingface.co/docs/peft/package_reference/lora (peft 0.21).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermes_deploy.errors import CheckpointError

ALL_LINEAR = "all-linear"

Rank = Annotated[int, Field(strict=True, ge=1, le=1 << 16)]
Alpha = Annotated[float, Field(gt=0, le=1e9)]
Names = tuple[Annotated[str, Field(pattern=r"^[\w.]+$", max_length=1024)], ...]
Layer = Annotated[int, Field(strict=True, ge=0, le=1024)]

# How it was trained or what it was called: no part of what it computes.
_NOT_COMPUTED = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "init_lora_weights",
        "lora_dropout",
        "lora_ga_config",
        "loftq_config",
        "megatron_core",
        "merge_weights",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
_REFUSED = {
    "bias": "it trained biases, and this decoder has none",
    "lora_bias": "its LoRA has biases, and this decoder has none",
    "fan_in_fan_out": "it is for layers that keep their weight transposed (GPT-2's Conv1D); this decoder has none",
    "trainable_token_indices": "it changes single rows of the embedding, which is not merged",
    "target_parameters": "it changes bare parameters (experts of a mixture), which is not merged",
    "layer_replication": "it repeats layers of the model, which is not built",
    "alora_invocation_tokens": "an activated LoRA acts on a part of the tokens only and cannot be merged",
    "use_qalora": "QA-LoRA pools the inputs of a GPTQ model and cannot be merged",
    "use_bdlora": "block-diagonal LoRA is not merged",
    "megatron_config": "it is for layers of Megatron",
}
# These starts take a part out of the base weight; the adapter alone does not say which.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_STARTS = ("gaussian", "eva", "orthogonal", "mica")
_MERGE_YOURSELF = (
    "Merge it with peft (merge_and_unload, then save_pretrained of model and tokenizer) and give the merged folder."
)


class LoraConfig(BaseModel):
    """The part of adapter_config.json that decides which weights change, and how."""

    model_config = ConfigDict(extra="allow", frozen=True)

    r: Rank = 8
    lora_alpha: Alpha = 8.0
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    target_modules: Names | str
    exclude_modules: Names | str | None = None
    modules_to_save: Names | None = None
    layers_to_transform: tuple[Layer, ...] | Layer | None = None
    layers_pattern: tuple[str, ...] | str | None = None
    ensure_weight_tying: bool = False
    base_model_name_or_path: Annotated[str, Field(max_length=4096)] | None = None
    task_type: str | None = None
    init_lora_weights: bool | str = True

    def scaling(self, alpha: float, rank: int) -> float:
        """The factor of B @ A. rsLoRA: https://arxiv.org/abs/2312.03732."""
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def transforms(self) -> frozenset[int] | None:
        """Layers that are changed; None = all."""
        chosen = self.layers_to_transform
        if isinstance(chosen, int):
            return frozenset({chosen})
        return frozenset(chosen) if chosen else None


def parse_adapter_config(data: Mapping[str, Any], where: str) -> LoraConfig:
    """`data` is adapter_config.json; `where` names it in messages. Raises CheckpointError."""
    kind = data.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type is {kind!r}; only LORA (with or without DoRA) is merged")
    for key, value in data.items():
        if key in LoraConfig.model_fields or key in _NOT_COMPUTED or not value or (key, value) == ("bias", "none"):
            continue
        reason = _REFUSED.get(key, "it is not known here and may change what the adapter computes")
        raise CheckpointError(f"{where}: {key} is {str(value)[:60]!r}: {reason}. {_MERGE_YOURSELF}")
    try:
        config = LoraConfig.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        found = "" if first["type"] == "missing" else f" (found {repr(first['input'])[:60]})"
        raise CheckpointError(f"{where}: {first['loc'][0]}: {first['msg']}{found}") from None
    _check_start(config, where)
    _check_layers(config, where)
    if config.task_type not in (None, "CAUSAL_LM"):
        raise CheckpointError(f"{where}: task_type is {config.task_type}; an adapter of a chat model is CAUSAL_LM")
    return config


def _check_start(config: LoraConfig, where: str) -> None:
    start = config.init_lora_weights
    if isinstance(start, bool) or start.lower() in _STARTS:
        return
    if start.lower().startswith(_CHANGES_THE_BASE):
        raise CheckpointError(
            f"{where}: init_lora_weights is {start!r}, which trained against a changed base model. Convert it with "
            "peft: save_pretrained(FOLDER, path_initial_model_for_weight_conversion=THE_UNTRAINED_ADAPTER)."
        )
    raise CheckpointError(f"{where}: init_lora_weights is {start!r}; allowed: true, false, {', '.join(_STARTS)}")


def _check_layers(config: LoraConfig, where: str) -> None:
    if config.transforms is None:
        return
    if isinstance(config.target_modules, str):
        raise CheckpointError(f"{where}: layers_to_transform needs target_modules to be a list, as in peft")
    pattern = config.layers_pattern
    names = (pattern,) if isinstance(pattern, str) else pattern
    if names and names != ("",) and "layers" not in names:
        raise CheckpointError(f"{where}: layers_pattern is {pattern!r}; this decoder's layers are named 'layers'")
