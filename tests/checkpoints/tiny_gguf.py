"""A tiny GGUF from a tiny Hugging Face folder, with the reordering that llama.cpp's converter does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType
from safetensors.numpy import load_file

from tests.fixtures.tiny import CHATML

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in TOP:
        return TOP[stem] + ".weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def interleave(weights: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Row order of llama.cpp: the two halves of a head alternate."""
    rows = len(weights) // heads
    order = [h * rows + half * (rows // 2) + i for h in range(heads) for i in range(rows // 2) for half in (0, 1)]
    return weights[order]


def write_tiny_gguf(
    folder: Path,
    path: Path,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.Q4_1,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """`metadata`: extra or changed entries by key; a value of None leaves the entry out."""
    config = json.loads((folder / "config.json").read_bytes())
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    entries: dict[str, Any] = {
        "general.name": "Tiny",
        "general.license": "mit",
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        "llama.attention.value_length": config["head_dim"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.chat_template": CHATML,
        **(metadata or {}),
    }
    if entries["tokenizer.ggml.merges"] == ["a b"]:
        # A list needs a first element; "ab" takes the place of an unused filler.
        entries["tokenizer.ggml.tokens"] = ["ab" if token == "<filler_300>" else token for token in tokens]
    writer = gguf.GGUFWriter(path, entries.pop("general.architecture", "llama"))
    for key, value in entries.items():
        _add(writer, key, value)
    for name, weights in load_file(folder / "model.safetensors").items():
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:
                weights = interleave(weights, config[heads])
        if weights.ndim == 1:
            writer.add_tensor(gguf_name(name), weights.astype(np.float32))
        else:
            writer.add_tensor(gguf_name(name), gguf.quantize(weights.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
