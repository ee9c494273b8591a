"""The decoder in float32 numpy, the weights of half a layer in memory at a time.

Takes a config, weights and some token sequences; gives the last hidden states, the residual stream
after every layer to who steps along, and every linear's input to who asks. It shares no code with
`graphs/`, so it is a second opinion on the graph as well as on the rounding. Whatever the number of
positions, each weight is read once and only the residual stream is kept of all positions. Slow
beside an engine and meant to be: calibration and the gate run it once.
Mistral 7B (arXiv:2310.06825): RMSNorm, rotary embedding in halves, grouped-query attention with an
optional sliding window, SwiGLU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.checkpoints.layout import EMBEDDING, HEAD
from hermes_deploy.errors import QuantizationError

Float = npt.NDArray[np.float32]
Apply = Callable[[Float], Float]
Observe = Callable[[str, Float], None]
"""Called with a linear's name ("layers.0.qkv") and its input [positions, K]; must not keep it."""
Past = dict[tuple[str, int], tuple[Float, Float]]
"""Rotated keys and values [positions, kv_heads, head_dim], by layer and sequence."""
Keep = Callable[[str, Float], Float]
"""Called with "layers.0.key" or "layers.0.value" and what a sequence adds to its cache [positions,
kv_heads, head_dim], keys rotated; gives what the cache then holds in its place."""
Progress = Callable[[int, int], None]
"""(layers done, layers in all)."""

_ROWS = 1024
"""About how many positions go through a layer at once."""


class Weights(Protocol):
    """Where the decoder gets its numbers: a checkpoint's, or those that a graph was saved with."""

    def embed(self, ids: npt.NDArray[np.int64]) -> Float:
        """[positions] -> [positions, hidden_size]."""

    def norm(self, name: str) -> Float:
        """[hidden_size] of "layers.0.input_norm", "layers.0.mlp_norm" or "norm"."""

    def linear(self, name: str) -> Apply:
        """What "layers.0.qkv", ".o", ".gate_up" or ".down" does to [n, K]; it holds the weight."""


class CheckpointWeights:
    """The weights as they came. Of the matrices that are asked for first, up to `keep` bytes stay in
    memory, for who asks again and again."""

    def __init__(self, tensors: Mapping[str, LazyTensor], keep: int = 0) -> None:
        self._tensors = tensors
        self._room = keep
        self._kept: dict[str, Apply] = {}

    def embed(self, ids: npt.NDArray[np.int64]) -> Float:
        rows: Float = self._tensors[EMBEDDING].load()[ids].astype(np.float32)
        return rows

    def norm(self, name: str) -> Float:
        if name == "norm":
            return self._tensors["model.norm.weight"].float32()
        _, layer, part = name.split(".")
        kind = {"input_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}[part]
        return self._tensors[f"model.layers.{layer}.{kind}.weight"].float32()

    def linear(self, name: str) -> Apply:
        if name in self._kept:
            return self._kept[name]
        _, layer, part = name.split(".")
        sources = [self._tensors[f"model.layers.{layer}.{each}.weight"].float32() for each in LINEAR_SOURCES[part]]
        ends = np.cumsum([len(source) for source in sources])

        def apply(inputs: Float) -> Float:
            out = np.empty((len(inputs), ends[-1]), dtype=np.float32)
            for source, end in zip(sources, ends, strict=True):
                np.matmul(inputs, source.T, out=out[:, end - len(source) : end])
            return out

        size = sum(source.nbytes for source in sources)
        if size <= self._room:
            self._room -= size
            self._kept[name] = apply
        return apply


LINEAR_SOURCES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The checkpoint's matrices that each linear of a layer joins, in order of its outputs."""


def hidden_states(
    config: DecoderConfig,
    tensors: Mapping[str, LazyTensor],
    sequences: Sequence[Sequence[int]],
    observe: Observe | None = None,
    progress: Progress | None = None,
) -> Float:
    """Final hidden states, after the last norm, of all positions: [sum of lengths, hidden_size].

    The sequences are independent and stand one after another; each starts at position 0. `observe`
    sees all positions of a linear at once, which takes their memory.
    Raises QuantizationError for an empty sequence or an id outside the vocabulary.
    """
    states = enumerate(layer_states(config, CheckpointWeights(tensors), sequences, observe))
    last = next(states)
    for last in states:
        if progress is not None:
            progress(min(last[0], config.layers), config.layers)
    return last[1]


def layer_states(
    config: DecoderConfig,
    weights: Weights,
    sequences: Sequence[Sequence[int]],
    observe: Observe | None = None,
    past: Past | None = None,
    keep: Keep | None = None,
) -> Iterator[Float]:
    """[positions, hidden_size], one by one: the embedding, the residual stream after each layer, and
    at last the normed state that the head reads. Each is overwritten by the next step.

    Two of these side by side compare two sets of weights layer by layer. With a `past`, each sequence
    goes on where it ended in the last call with the same one, and is kept in it. What `keep` gives is
    what queries meet. Raises as `hidden_states`.
    """
    ids = _checked_ids(config, sequences)
    lengths = [len(sequence) for sequence in sequences]
    watch = observe or _ignore
    groups = _groups(lengths, sum(lengths) if observe is not None else _ROWS)
    x = weights.embed(ids)
    yield x
    for layer in range(config.layers):
        # what is not finite is the caller's to report; numpy's warnings would come before its message
        with np.errstate(over="ignore", invalid="ignore"):
            _attention_block(config, weights, f"layers.{layer}", x, groups, past, watch, keep or _as_it_is)
            _mlp_block(config, weights, f"layers.{layer}", x, groups, watch)
        yield x
    with np.errstate(over="ignore", invalid="ignore"):
        normed = _norm(x, weights.norm("norm"), config.rms_norm_eps)
    watch("head", normed)
    yield normed


def _ignore(name: str, inputs: Float) -> None:
    """Nobody asked."""


def _as_it_is(_: str, values: Float) -> Float:
    return values


def _groups(lengths: Sequence[int], rows: int) -> list[list[slice]]:
    """Neighbouring sequences, as slices of positions, in groups of about `rows` positions."""
    groups: list[list[slice]] = []
    start = size = 0
    for length in lengths:
        if not groups or size + length > rows:
            groups.append([])
            size = 0
        groups[-1].append(slice(start, start + length))
        start, size = start + length, size + length
    return groups


def _attention_block(
    config: DecoderConfig,
    weights: Weights,
    name: str,
    x: Float,
    groups: list[list[slice]],
    past: Past | None,
    watch: Observe,
    keep: Keep,
) -> None:
    vector, qkv, o = weights.norm(f"{name}.input_norm"), weights.linear(f"{name}.qkv"), weights.linear(f"{name}.o")
    query, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    sequence = 0
    for group in groups:
        rows = slice(group[0].start, group[-1].stop)
        normed = _norm(x[rows], vector, config.rms_norm_eps)
        watch(f"{name}.qkv", normed)
        joined = qkv(normed)
        mixed = np.empty((len(normed), query), dtype=np.float32)
        for each in group:
            own = slice(each.start - rows.start, each.stop - rows.start)
            q, k, v = np.split(joined[own], (query, query + kv), axis=1)
            mixed[own] = _attention(config, q, k, v, past, (name, sequence), keep)
            sequence += 1
        watch(f"{name}.o", mixed)
        x[rows] += o(mixed)


def _mlp_block(
    config: DecoderConfig, weights: Weights, name: str, x: Float, groups: list[list[slice]], watch: Observe
) -> None:
    vector = weights.norm(f"{name}.mlp_norm")
    gate_up, down = weights.linear(f"{name}.gate_up"), weights.linear(f"{name}.down")
    for group in groups:
        rows = slice(group[0].start, group[-1].stop)
        normed = _norm(x[rows], vector, config.rms_norm_eps)
        watch(f"{name}.gate_up", normed)
        gate, up = np.split(gate_up(normed), 2, axis=1)
        product = _sigmoid(gate)
        product *= gate
        product *= up
        watch(f"{name}.down", product)
        x[rows] += down(product)


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


def _norm(x: Float, weight: Float, epsilon: float) -> Float:
    power = np.einsum("pk,pk->p", x, x, dtype=np.float32) / np.float32(x.shape[1])
    normed: Float = x * (np.float32(1) / np.sqrt(power + np.float32(epsilon)))[:, None] * weight
    return normed


def _sigmoid(x: Float) -> Float:
    result: Float = np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))
    return result


@functools.lru_cache(maxsize=64)
def _rotary_table(config: DecoderConfig, start: int, stop: int) -> tuple[Float, Float]:
    """cos and sin [stop - start, head_dim / 2]; angles rounded to float32 as in the models' training code."""
    power = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequency = (1.0 / config.rope_theta**power).astype(np.float32)
    angle = np.outer(np.arange(start, stop, dtype=np.float32), frequency).astype(np.float64)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def _rotate(x: Float, cosine: Float, sine: Float) -> Float:
    """[n, heads, head_dim]; the first half of a head pairs with the second."""
    first, second = np.split(x, 2, axis=-1)
    c, s = cosine[:, None], sine[:, None]
    return np.concatenate((first * c - second * s, second * c + first * s), axis=-1)


def _attention(
    config: DecoderConfig, q: Float, k: Float, v: Float, past: Past | None, own: tuple[str, int], keep: Keep
) -> Float:
    """One sequence: q [n, heads * head_dim], k and v [n, kv_heads * head_dim] -> [n, heads * head_dim].

    `past` holds rotated keys and values of what `own` read before, and is given these too.
    """
    shape = (-1, config.kv_heads, config.head_dim)
    earlier = None if past is None else past.get(own)
    n, start, group = len(q), 0 if earlier is None else len(earlier[0]), config.heads // config.kv_heads
    cosine, sine = _rotary_table(config, start, start + n)
    queries = _rotate(q.reshape(n, config.heads, config.head_dim), cosine, sine)
    keys = keep(f"{own[0]}.key", _rotate(k.reshape(shape), cosine, sine))
    values = keep(f"{own[0]}.value", v.reshape(shape))
    if earlier is not None:
        keys, values = np.concatenate((earlier[0], keys)), np.concatenate((earlier[1], values))
    if past is not None:
        past[own] = keys, values
    position, seen = start + np.arange(n), np.arange(start + n)
    hidden = seen[None, :] > position[:, None]
    if config.sliding_window is not None:
        hidden |= seen[None, :] <= position[:, None] - config.sliding_window
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
