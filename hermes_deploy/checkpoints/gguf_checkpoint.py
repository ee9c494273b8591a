"""A .gguf file -> `Checkpoint`. Tensors stay in the memory map and are dequantized one by one when asked for.

llama.cpp's converter reorders the rows of q and k for its interleaved rotary embedding; they are put
back, so that a tensor here equals the Hugging Face tensor it was made from (up to quantization).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints import chat_settings, notices
from hermes_deploy.checkpoints.checkpoint import Checkpoint, DecoderConfig, LazyTensor
from hermes_deploy.checkpoints.fingerprint import sha256_file
from hermes_deploy.checkpoints.gguf_blocks import dequantize, read_rows
from hermes_deploy.checkpoints.gguf_header import GgufHeader, GgufTensor, read_header
from hermes_deploy.checkpoints.gguf_tokenizer import gguf_tokenizer_json, token_text
from hermes_deploy.checkpoints.hf_config import check_shape
from hermes_deploy.checkpoints.layout import EMBEDDING, HEAD, select_tensors
from hermes_deploy.checkpoints.safetensors_file import check_finite
from hermes_deploy.errors import CheckpointError

_TOP = {"token_embd.weight": EMBEDDING, "output_norm.weight": "model.norm.weight", "output.weight": HEAD}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def open_gguf(
    path: Path, *, name: str | None = None, source: str | None = None, sha256: str | None = None
) -> Checkpoint:
    """`sha256`: the file's digest where the caller has just computed it. Raises CheckpointError."""
    header = read_header(path)
    where = path.name
    config = _config(header, where)
    found = {hf: _lazy(hf, tensor, header.view, config, where) for hf, tensor in _rename(header, where).items()}
    metadata = header.metadata
    family, tokenizer = chat_settings.tokenizer_files(
        gguf_tokenizer_json(metadata, where),
        template=metadata.get("tokenizer.chat_template"),
        bos_token=token_text(metadata, "tokenizer.ggml.bos_token_id", where),
        eos_token=token_text(metadata, "tokenizer.ggml.eos_token_id", where),
        eos_ids=chat_settings.token_ids(metadata.get("tokenizer.ggml.eot_token_id"), where),
        vocab_size=config.vocab_size,
        where=where,
    )
    sampling = {ours: metadata[theirs] for theirs, ours in _SAMPLING.items() if theirs in metadata}
    return Checkpoint(
        name=name or str(metadata.get("general.name") or path.stem),
        source=source or f"file {path.resolve().name}",
        revision=None,
        sha256=sha256 or sha256_file(path),
        family=family,
        config=config,
        tensors=select_tensors(found, config, where),
        tokenizer=tokenizer,
        generation=chat_settings.generation_defaults(sampling, where),
        license_id=notices.license_id(str(metadata.get("general.license") or "unknown")),
        weights_note=_note(header),
    )


def _config(header: GgufHeader, where: str) -> DecoderConfig:
    facts = _Facts(header.metadata, where)
    architecture = header.metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(
            f"{where}: GGUF architecture {architecture!r} is not supported; supported: llama (Llama and Mistral)"
        )
    if facts.number("llama.expert_count", 0):
        raise CheckpointError(
            f"{where}: a mixture of experts (Mixtral) is not built yet; give a dense Llama or Mistral"
        )
    scaling = header.metadata.get("llama.rope.scaling.type", "none")
    if (
        scaling != "none"
        or facts.number("llama.rope.scale_linear", 1.0) != 1.0
        or "rope_freqs.weight" in header.tensors
    ):
        raise CheckpointError(f"{where}: RoPE scaling is not supported; only the default (unscaled) RoPE is")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{where}: token_embd.weight is missing; the file holds no language model")
    hidden, heads = facts.count("llama.embedding_length"), facts.count("llama.attention.head_count")
    head_dim = facts.count("llama.attention.key_length", hidden // heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if facts.count(key, head_dim) != head_dim:
            raise CheckpointError(f"{where}: {key} differs from the head size {head_dim}; that is not supported")
    window = header.metadata.get("llama.attention.sliding_window")
    return check_shape(
        DecoderConfig(
            architecture="LlamaForCausalLM" if window is None else "MistralForCausalLM",
            vocab_size=embedding.shape[0],
            hidden_size=hidden,
            layers=facts.count("llama.block_count"),
            heads=heads,
            kv_heads=facts.count("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            intermediate_size=facts.count("llama.feed_forward_length"),
            rms_norm_eps=facts.number("llama.attention.layer_norm_rms_epsilon"),
            rope_theta=facts.number("llama.rope.freq_base", 10000.0),
            max_position=facts.count("llama.context_length"),
            sliding_window=None if window is None else facts.count("llama.attention.sliding_window"),
            tied_head="output.weight" not in header.tensors,
        ),
        where,
    )


class _Facts:
    """Typed reading of metadata numbers."""

    def __init__(self, metadata: dict[str, Any], where: str) -> None:
        self.metadata = metadata
        self.where = where

    def number(self, key: str, default: float | None = None) -> float:
        """The shortest decimal with the stored float32: 1e-5 was written, 9.999999747e-06 is what float32 keeps."""
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
            raise CheckpointError(f"{self.where}: {key} is {value!r}; expected a number from 0")
        return float(str(np.float32(value)))

    def count(self, key: str, default: int | None = None) -> int:
        value = self.metadata.get(key, default)
        if type(value) is not int or not 1 <= value <= 1 << 24:
            raise CheckpointError(f"{self.where}: {key} is {value!r}; expected a whole number from 1")
        return value


def _rename(header: GgufHeader, where: str) -> dict[str, GgufTensor]:
    renamed = {}
    for name, tensor in header.tensors.items():
        parts = name.split(".")
        if name in _TOP:
            renamed[_TOP[name]] = tensor
        elif (
            len(parts) == 4
            and parts[0] == "blk"
            and parts[1].isdecimal()
            and parts[2] in _LAYER
            and parts[3] == "weight"
        ):
            renamed[f"model.layers.{int(parts[1])}.{_LAYER[parts[2]]}.weight"] = tensor
        else:
            raise CheckpointError(f"{where}: tensor {name} belongs to no Llama or Mistral decoder without biases")
    return renamed


def _lazy(name: str, tensor: GgufTensor, view: memoryview, config: DecoderConfig, where: str) -> LazyTensor:
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])

    def load() -> npt.NDArray[Any]:
        rows = read_rows(tensor, view)
        if heads is not None:
            rows = _restore_row_order(rows, heads)
        try:
            array = dequantize(rows, tensor.kind).reshape(tensor.shape)
        except NotImplementedError:
            raise CheckpointError(f"{where}: {name} is stored as {tensor.kind.name}, which cannot be read") from None
        check_finite(array, name, where)
        return array

    return LazyTensor(name, tensor.shape, tensor.kind.name, load)


def _restore_row_order(rows: npt.NDArray[np.uint8], heads: int) -> npt.NDArray[np.uint8]:
    """Inside each head the converter wrote row 2i from row i and row 2i+1 from row i + head_dim/2."""
    split = rows.reshape(heads, len(rows) // heads // 2, 2, rows.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def _note(header: GgufHeader) -> str:
    """Which storage types the weights have, most frequent first; vectors in F32 are not quantized."""
    matrices = {name: tensor for name, tensor in header.tensors.items() if len(tensor.shape) > 1}
    kinds = Counter(tensor.kind.name for tensor in matrices.values())
    if set(kinds) <= {"F32", "F16", "BF16"}:
        return ""
    (main, count), *others = kinds.most_common()
    note = f"dequantized from GGUF {main} ({count} of {len(matrices)} matrices)"
    for kind, number in others:
        names = [name for name, tensor in matrices.items() if tensor.kind.name == kind]
        note += f", {names[0] if number == 1 else f'{number} matrices'} {kind}"
    return note + ", norms F32" if any(t.kind.name == "F32" for t in header.tensors.values()) else note
