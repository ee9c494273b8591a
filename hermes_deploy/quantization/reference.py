"""The unquantized decoder in float32 numpy, one matrix in memory at a time.

Takes a checkpoint's config and lazy tensors and some token sequences; gives the last hidden states,
and shows every linear's input to who asks. It shares no code with `graphs/`, so it is a second
opinion on the graph as well as on the rounding; each weight is read once, so a 7B needs about one
matrix of memory. Slow beside an engine and meant to be: calibration and the gate run it once.
Mistral 7B (arXiv:2310.06825): RMSNorm, rotary embedding in halves, grouped-query attention with an
optional sliding window, SwiGLU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.checkpoints.layout import EMBEDDING, HEAD
from hermes_deploy.errors import QuantizationError

Float = npt.NDArray[np.float32]
Observe = Callable[[str, Float], None]
"""Called with a linear's name ("layers.0.qkv") and its input [positions, K]; must not keep it."""


def hidden_states(
    config: DecoderConfig,
    tensors: Mapping[str, LazyTensor],
    sequences: Sequence[Sequence[int]],
    observe: Observe | None = None,
) -> Float:
    """Final hidden states, after the last norm, of all positions: [sum of lengths, hidden_size].

    The sequences are independent and stand one after another; each starts at position 0.
    Raises QuantizationError for an empty sequence or an id outside the vocabulary.
    """
    ids = _checked_ids(config, sequences)
    lengths = [len(sequence) for sequence in sequences]

    def watch(name: str, inputs: Float) -> Float:
        if observe is not None:
            observe(name, inputs)
        return inputs

    # what is not finite is the caller's to report; numpy's warnings would come before its message
    with np.errstate(over="ignore", invalid="ignore"):
        return _run(config, tensors, ids, lengths, watch)


def _run(
    config: DecoderConfig,
    tensors: Mapping[str, LazyTensor],
    ids: npt.NDArray[np.int64],
    lengths: Sequence[int],
    watch: Callable[[str, Float], Float],
) -> Float:
    cosine, sine = _rotary_table(config, max(lengths))
    x = _rows(tensors, EMBEDDING, ids)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        normed = _norm(x, tensors[f"{prefix}.input_layernorm.weight"].float32(), config.rms_norm_eps)
        watch(f"layers.{layer}.qkv", normed)
        q, k, v = (_apply(tensors, f"{prefix}.self_attn.{part}_proj.weight", normed) for part in "qkv")
        mixed = np.empty((len(ids), config.heads * config.head_dim), dtype=np.float32)
        start = 0
        for length in lengths:
            rows = slice(start, start + length)
            mixed[rows] = _attention(config, q[rows], k[rows], v[rows], cosine[:length], sine[:length])
            start += length
        watch(f"layers.{layer}.o", mixed)
        x += _apply(tensors, f"{prefix}.self_attn.o_proj.weight", mixed)
        normed = _norm(x, tensors[f"{prefix}.post_attention_layernorm.weight"].float32(), config.rms_norm_eps)
        watch(f"layers.{layer}.gate_up", normed)
        gate = _apply(tensors, f"{prefix}.mlp.gate_proj.weight", normed)
        gate *= _sigmoid(gate)
        gate *= _apply(tensors, f"{prefix}.mlp.up_proj.weight", normed)
        watch(f"layers.{layer}.down", gate)
        x += _apply(tensors, f"{prefix}.mlp.down_proj.weight", gate)
    return watch("head", _norm(x, tensors["model.norm.weight"].float32(), config.rms_norm_eps))


def head_weight(config: DecoderConfig, tensors: Mapping[str, LazyTensor]) -> LazyTensor:
    """The output head [vocab_size, hidden_size]; the embedding where the two are tied."""
    return tensors[EMBEDDING if config.tied_head else HEAD]


def _checked_ids(config: DecoderConfig, sequences: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    if not sequences or any(len(sequence) == 0 for sequence in sequences):
        raise QuantizationError("the reference needs token sequences; found none, or an empty one")
    ids = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise QuantizationError(
            f"token id {int(ids.min() if ids.min() < 0 else ids.max())} is outside the vocabulary "
            f"(0..{config.vocab_size - 1}): tokenizer and weights do not belong together"
        )
    return ids


def _rows(tensors: Mapping[str, LazyTensor], name: str, ids: npt.NDArray[np.int64]) -> Float:
    rows: Float = tensors[name].load()[ids].astype(np.float32)
    return rows


def _apply(tensors: Mapping[str, LazyTensor], name: str, inputs: Float) -> Float:
    product: Float = inputs @ tensors[name].float32().T
    return product


def _norm(x: Float, weight: Float, epsilon: float) -> Float:
    power = np.einsum("pk,pk->p", x, x, dtype=np.float32) / np.float32(x.shape[1])
    normed: Float = x * (np.float32(1) / np.sqrt(power + np.float32(epsilon)))[:, None] * weight
    return normed


def _sigmoid(x: Float) -> Float:
    result: Float = np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))
    return result


def _rotary_table(config: DecoderConfig, length: int) -> tuple[Float, Float]:
    """cos and sin [length, head_dim / 2]; angles rounded to float32 as in the models' training code."""
    power = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequency = (1.0 / config.rope_theta**power).astype(np.float32)
    angle = np.outer(np.arange(length, dtype=np.float32), frequency).astype(np.float64)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _rotate(x: Float, cosine: Float, sine: Float) -> Float:
    """[n, heads, head_dim]; the first half of a head pairs with the second."""
    first, second = np.split(x, 2, axis=-1)
    c, s = cosine[:, None], sine[:, None]
    return np.concatenate((first * c - second * s, second * c + first * s), axis=-1)


def _attention(config: DecoderConfig, q: Float, k: Float, v: Float, cosine: Float, sine: Float) -> Float:
    """One sequence: q [n, heads * head_dim], k and v [n, kv_heads * head_dim] -> [n, heads * head_dim]."""
    n, group = len(q), config.heads // config.kv_heads
    queries = _rotate(q.reshape(n, config.heads, config.head_dim), cosine, sine)
    keys = _rotate(k.reshape(n, config.kv_heads, config.head_dim), cosine, sine)
    values = v.reshape(n, config.kv_heads, config.head_dim)
    position = np.arange(n)
    hidden = position[None, :] > position[:, None]
    if config.sliding_window is not None:
        hidden |= position[None, :] <= position[:, None] - config.sliding_window
    out = np.empty((n, config.heads, config.head_dim), dtype=np.float32)
    for head in range(config.heads):
        kv = head // group
        score = queries[:, head] @ keys[:, kv].T
        score *= np.float32(config.head_dim**-0.5)
        score[hidden] = -np.inf
        score -= score.max(axis=1, keepdims=True)
        np.exp(score, out=score)
        score /= score.sum(axis=1, keepdims=True)
        out[:, head] = score @ values[:, kv]
    return out.reshape(n, -1)
