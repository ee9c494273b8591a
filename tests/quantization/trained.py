"""A tiny Mistral that was trained for some seconds on real text, and how far a quantized twin is from it.

Random weights say little about quantization: nothing that they compute depends on anything. This
one predicts the bytes of Python's own documentation (`pydoc_data.topics`), well above chance, and its
width of 256 can be cut into blocks of 128. Nothing is kept on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pydoc_data.topics import topics

import numpy as np

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.quantization.reference import LINEAR_SOURCES, Apply, CheckpointWeights, Float, layer_states
from hermes_deploy.verification.intervals import Interval, bootstrap
from hermes_deploy.verification.measures import Comparison

CONFIG = DecoderConfig(
    architecture="MistralForCausalLM",
    vocab_size=256,
    hidden_size=256,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=64,
    intermediate_size=512,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position=256,
    tied_head=True,
)
OneOf = Callable[[str, Float], Float]
"""From a linear's name and a matrix of it."""

STEPS, BATCH, LENGTH = 300, 8, 64


@dataclass(frozen=True)
class Trained:
    """`calibration` and `heldout`: byte sequences of text that it was not trained on, apart from each other."""

    tensors: Mapping[str, LazyTensor]
    calibration: list[list[int]]
    heldout: list[list[int]]
    loss: float


def train() -> Trained:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as fast for so small a model, and the same everywhere
    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    ids = torch.tensor(list(text))
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.intermediate_size,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        num_key_value_heads=CONFIG.kv_heads,
        head_dim=CONFIG.head_dim,
        max_position_embeddings=CONFIG.max_position,
        rms_norm_eps=CONFIG.rms_norm_eps,
        rope_theta=CONFIG.rope_theta,
        sliding_window=None,
        tie_word_embeddings=True,
    )
    model = MistralForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS, pct_start=0.1)
    end, last = len(ids) * 9 // 10, []
    for _ in range(STEPS):
        starts = torch.randint(end - LENGTH, (BATCH,))
        batch = torch.stack([ids[start : start + LENGTH] for start in starts.tolist()])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        last = [*last[-19:], loss.item()]
    torch.set_num_threads(threads)
    arrays = {name: value.detach().numpy().astype(np.float32) for name, value in model.state_dict().items()}
    tensors = {
        name: LazyTensor(name, array.shape, "F32", lambda array=array: array)
        for name, array in arrays.items()
        if name != "lm_head.weight"
    }
    unseen = np.frombuffer(text[end:], np.uint8).astype(int)
    windows = [unseen[start : start + LENGTH].tolist() for start in range(0, len(unseen) - LENGTH, 2 * LENGTH)]
    return Trained(tensors, windows[:32], windows[32:96], float(np.mean(last)))


class Rounded(CheckpointWeights):
    """The model with other weights, and inputs of linears as an activation quantizer leaves them."""

    def __init__(
        self,
        tensors: Mapping[str, LazyTensor],
        weight: Callable[[str, Float], Float],
        inputs: Callable[[str, Float], Float],
    ) -> None:
        """`weight` maps [K, N], `inputs` [n, K], both by the linear's name."""
        super().__init__(tensors)
        self._weight, self._inputs = weight, inputs

    def linear(self, name: str) -> Apply:
        _, layer, part = name.split(".")
        sources = [self._tensors[f"model.layers.{layer}.{each}.weight"].float32() for each in LINEAR_SOURCES[part]]
        matrix = self._weight(name, np.ascontiguousarray(np.concatenate(sources).T))
        return lambda inputs: self._inputs(name, inputs) @ matrix


def compared(trained: Trained, candidate: Rounded) -> Comparison:
    """Answers of `candidate` against those of the model as trained, on the held-out text."""
    exact = _logits(trained, CheckpointWeights(trained.tensors))
    ours = _logits(trained, candidate)
    comparison = Comparison(len(trained.heldout))
    for chat, ids in enumerate(trained.heldout):
        rows = slice(chat * LENGTH, (chat + 1) * LENGTH)
        comparison.add(chat, 0, exact[rows], ours[rows], np.asarray(ids[1:], dtype=np.int64))
    return comparison


def _logits(trained: Trained, weights: CheckpointWeights) -> Float:
    *_, last = layer_states(CONFIG, weights, trained.heldout)
    return last @ trained.tensors["model.embed_tokens.weight"].float32().T


def ratio(one: Comparison, other: Comparison) -> Interval:
    """95 % interval of the mean KL of `one` over that of `other`, over texts."""
    sums = np.asarray([list(each.kl_by_chat().values()) for each in (one, other)]).T
    return bootstrap(sums, lambda drawn: {"kl": drawn[:, 0] / drawn[:, 1]})["kl"]
