"""config.json: every supported way to say a thing, and every unsupported thing by its name."""

from __future__ import annotations

from typing import Any

import pytest

from hermes_deploy.checkpoints.hf_config import parse_config
from hermes_deploy.errors import CheckpointError

MISTRAL_7B: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "vocab_size": 32002,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "rms_norm_eps": 1e-05,
    "max_position_embeddings": 32768,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def config_with(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**MISTRAL_7B, **changes}.items() if value is not ...}


def test_a_7b_of_2023_is_read_whole() -> None:
    config = parse_config(MISTRAL_7B, "config.json")
    assert (config.head_dim, config.kv_heads, config.sliding_window, config.rope_theta) == (128, 8, 4096, 10000.0)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"head_dim": 160}, "head_dim", 160),
        ({"head_dim": None}, "head_dim", 128),
        ({"sliding_window": None}, "sliding_window", None),
        ({"sliding_window": ...}, "sliding_window", 4096),  # MistralConfig's default
        ({"rope_theta": ...}, "rope_theta", 10000.0),
        ({"rope_theta": 1e6}, "rope_theta", 1e6),
        ({"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta", 5e5),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta", 5e5),
        ({"rope_scaling": None}, "rope_theta", 10000.0),
        ({"tie_word_embeddings": True}, "tied_head", True),
        (
            {"architectures": ["LlamaForCausalLM"], "num_key_value_heads": ..., "sliding_window": ...},
            "kv_heads",
            32,
        ),
        ({"architectures": ["LlamaForCausalLM"], "sliding_window": ...}, "sliding_window", None),
    ],
)
def test_what_transformers_understands_is_understood(changes: dict[str, Any], field: str, value: object) -> None:
    assert getattr(parse_config(config_with(**changes), "config.json"), field) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM .* is not built yet; .* MistralForCausalLM"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM is not supported; .* LlamaForCausalLM"),
        ({"architectures": ...}, "architectures is None; expected a list of one of"),
        ({"architectures": ["MistralForCausalLM", "LlamaForCausalLM"]}, "expected a list of one of"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling asks for RoPE scaling 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "RoPE scaling 'yarn'; only the default"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differs by layer type"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "only a part of each head"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7e4}}, "they must agree"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "expected a number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        ({"num_key_value_heads": ...}, "num_key_value_heads is missing"),
        ({"num_key_value_heads": 5}, "32 attention heads cannot share 5"),
        ({"hidden_size": 4097}, "not a multiple of 32 heads"),
        ({"head_dim": 63}, "needs an even one"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ({"architectures": ["LlamaForCausalLM"], "sliding_window": 128}, "Llama's attention has no window"),
    ],
)
def test_what_is_not_built_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        parse_config(config_with(**changes), "model/config.json")
    assert str(caught.value).startswith("model/config.json: ")
