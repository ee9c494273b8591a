"""Ways in which weights go wrong between a checkpoint and an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hermes_deploy.checkpoints.checkpoint import Checkpoint, LazyTensor


def damaged(
    checkpoint: Checkpoint, names: tuple[str, ...], how: Callable[[np.ndarray], Any]
) -> Mapping[str, LazyTensor]:
    """The checkpoint's tensors, those called `names` passed through `how`."""
    tensors = dict(checkpoint.tensors)
    for name in names:
        whole = tensors[name].float32
        tensors[name] = replace(tensors[name], load=lambda whole=whole: how(whole().copy()))
    return tensors


def scrambled_layer(checkpoint: Checkpoint, layer: int) -> Mapping[str, LazyTensor]:
    """Rows of every matrix of one layer in another order."""
    names = tuple(name for name in checkpoint.tensors if name.startswith(f"model.layers.{layer}.") and "proj" in name)
    return damaged(checkpoint, names, lambda a: a[np.random.default_rng(0).permutation(len(a))])


def scrambled_head(checkpoint: Checkpoint, layer: int, head: int, matrix: str) -> Mapping[str, LazyTensor]:
    """The slice of one attention head in `q`, `k`, `v` (rows) or `o` (columns), in another order."""
    width = checkpoint.config.head_dim
    place = slice(head * width, (head + 1) * width)
    order = np.random.default_rng(0).permutation(width)

    def scramble(a: np.ndarray) -> np.ndarray:
        rows = a.T if matrix == "o" else a
        rows[place] = rows[place][order]
        return a

    return damaged(checkpoint, (f"model.layers.{layer}.self_attn.{matrix}_proj.weight",), scramble)
