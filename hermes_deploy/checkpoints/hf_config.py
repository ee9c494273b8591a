"""config.json of a Hugging Face folder -> a validated `DecoderConfig`. Reads values, no tensors.

Whatever the decoder in `graphs/` does not compute (scaled RoPE, biases, another activation, experts,
already quantized weights) is refused here, by name, before any work. Absent keys take the value that
transformers gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermes_deploy.checkpoints.checkpoint import DecoderConfig
from hermes_deploy.checkpoints.quantized_source import refuse_quantized_config
from hermes_deploy.errors import CheckpointError
from hermes_deploy.families import ARCHITECTURES

Count = Annotated[int, Field(strict=True, ge=1, le=1 << 20)]
Positions = Annotated[int, Field(strict=True, ge=1, le=1 << 24)]

_ROPE_THETA = 10000.0
_MISTRAL_WINDOW = 4096


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Annotated[int, Field(strict=True, ge=1, le=1024)]
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    intermediate_size: Count
    rms_norm_eps: float = Field(gt=0, lt=1)
    max_position_embeddings: Positions
    rope_theta: float | None = Field(default=None, ge=1, le=1e12)
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    sliding_window: Positions | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"


def parse_config(data: Mapping[str, Any], where: str) -> DecoderConfig:
    """`data` is config.json; `where` names it in messages. Raises CheckpointError."""
    refuse_quantized_config(data, where)
    architecture = check_architecture(data.get("architectures"), where)
    try:
        config = _Config.model_validate(dict(data))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']} (found {str(e['input'])[:60]})"
            if e["type"] != "missing"
            else f"{e['loc'][0]} is missing"
            for e in error.errors(include_url=False)
        )
        raise CheckpointError(f"{where}: {problems}") from None
    _refuse_what_is_not_built(config, where)
    kv_heads = config.num_key_value_heads
    if kv_heads is None:
        if architecture == "MistralForCausalLM":
            raise CheckpointError(f"{where}: num_key_value_heads is missing")
        kv_heads = config.num_attention_heads
    window = config.sliding_window
    if architecture == "MistralForCausalLM" and "sliding_window" not in data:
        window = _MISTRAL_WINDOW
    if architecture == "LlamaForCausalLM" and window is not None:
        raise CheckpointError(f"{where}: sliding_window is {window}, but Llama's attention has no window")
    return check_shape(
        DecoderConfig(
            architecture=architecture,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=kv_heads,
            head_dim=config.head_dim or _head_dim(config, where),
            intermediate_size=config.intermediate_size,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=_rope_theta(config, where),
            max_position=config.max_position_embeddings,
            sliding_window=window,
            tied_head=config.tie_word_embeddings,
        ),
        where,
    )


def check_architecture(found: object, where: str) -> str:
    """The one architecture of `found` (config.json's list). Raises CheckpointError with what is allowed."""
    allowed = ", ".join(ARCHITECTURES)
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise CheckpointError(f"{where}: architectures is {found!r}; expected a list of one of: {allowed}")
    name = found[0]
    if name == "MixtralForCausalLM":
        raise CheckpointError(
            f"{where}: MixtralForCausalLM (mixture of experts) is not built yet; architectures are: {allowed}"
        )
    if name not in ARCHITECTURES:
        raise CheckpointError(f"{where}: architecture {name} is not supported; architectures are: {allowed}")
    return name


def check_shape(config: DecoderConfig, where: str) -> DecoderConfig:
    """Raises CheckpointError when the numbers contradict each other; gives `config` back."""
    if config.heads % config.kv_heads:
        raise CheckpointError(f"{where}: {config.heads} attention heads cannot share {config.kv_heads} key/value heads")
    if not 0 < config.rms_norm_eps < 1:
        raise CheckpointError(
            f"{where}: the norms' epsilon is {config.rms_norm_eps}; expected a number between 0 and 1"
        )
    if not 1 <= config.rope_theta <= 1e12:
        raise CheckpointError(f"{where}: RoPE's theta is {config.rope_theta}; expected a number in 1..1e12")
    if config.head_dim % 2:
        raise CheckpointError(f"{where}: head_dim is {config.head_dim}; rotary embedding needs an even one")
    return config


def _head_dim(config: _Config, where: str) -> int:
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"{where}: hidden_size {config.hidden_size} is not a multiple of {config.num_attention_heads} heads "
            "and head_dim is not given"
        )
    return config.hidden_size // config.num_attention_heads


def _rope_theta(config: _Config, where: str) -> float:
    """transformers 4 writes rope_theta at the top level, transformers 5 inside rope_parameters."""
    inner = (config.rope_parameters or {}).get("rope_theta")
    if inner is None:
        return _ROPE_THETA if config.rope_theta is None else config.rope_theta
    if isinstance(inner, bool) or not isinstance(inner, int | float) or not 1 <= inner <= 1e12:
        raise CheckpointError(f"{where}: rope_parameters.rope_theta is {inner!r}; expected a number in 1..1e12")
    if config.rope_theta is not None and config.rope_theta != inner:
        raise CheckpointError(
            f"{where}: rope_theta is {config.rope_theta} but rope_parameters.rope_theta is {inner}; they must agree"
        )
    return float(inner)


def _refuse_what_is_not_built(config: _Config, where: str) -> None:
    for key, rope in (("rope_scaling", config.rope_scaling), ("rope_parameters", config.rope_parameters)):
        if not rope:
            continue
        if any(isinstance(value, dict) for value in rope.values()):
            raise CheckpointError(f"{where}: {key} differs by layer type; only one RoPE for all layers is supported")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise CheckpointError(
                f"{where}: {key} asks for RoPE scaling {kind!r}; only the default (unscaled) RoPE is supported"
            )
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise CheckpointError(f"{where}: {key} rotates only a part of each head; that is not supported")
    if config.partial_rotary_factor != 1.0:
        raise CheckpointError(f"{where}: partial_rotary_factor is {config.partial_rotary_factor}; only 1 is supported")
    if config.attention_bias:
        raise CheckpointError(f"{where}: attention_bias is true; projections with a bias are not supported")
    if config.mlp_bias:
        raise CheckpointError(f"{where}: mlp_bias is true; projections with a bias are not supported")
    if config.hidden_act != "silu":
        raise CheckpointError(f"{where}: hidden_act is {config.hidden_act!r}; only 'silu' is supported")
