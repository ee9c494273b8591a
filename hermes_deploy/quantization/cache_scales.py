"""Scales of 8-bit keys and values, one for each channel of each kv head, from what chats put into the cache.

Codes are -127..127, symmetric, value = code * scale; the engine rounds each token once, when it is written.

    values   bound = the largest |v| of a channel
    keys     bound = the greatest length of the two channels that a rotation turns into each other,
             for both: it is the same at every position, and the chats have only the first ones

On SmolLM2-135M, at the end of a text of 1,500 tokens, keys bounded by their largest |k| in chats of 128
tokens cost a KL of 0.22 and so bounded 0.006. One scale for a whole cache costs twice as much as one a channel.
Knows no graph and no file.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import DecoderConfig
from hermes_deploy.quantization.columns import LARGEST_INT8, scale_for
from hermes_deploy.quantization.equalize import Float, of_values

HEADROOM = 1.125
"""Scales hold this many times what was seen. Half of it again, for texts like the chats, only rounds more
coarsely; without any, what is larger is cut."""

QUIETEST = 1 / 256
"""Of a head's largest bound, the least of a channel's: one that did not move in the chats may do so later."""


class CacheBounds:
    """Sees keys and values as `reference.Keep` and leaves them as they are; `scales` at the end."""

    def __init__(self, config: DecoderConfig) -> None:
        self._config = config
        self._bounds: dict[str, Float] = {}

    def keep(self, name: str, values: Float) -> Float:
        """`values` [positions, kv_heads, head_dim] of "layers.0.key" or "layers.0.value"."""
        bound = _lengths(values).max(axis=0) if name.endswith(".key") else np.abs(values).max(axis=0)
        self._bounds[name] = np.maximum(bound, self._bounds[name]) if name in self._bounds else bound
        return values

    def scales(self, folded: Mapping[str, Float]) -> dict[str, Float]:
        """[kv_heads, head_dim] by cache, of the model with the scales of `folded` linears folded in."""
        return {name: self._scale(name, bound, folded) for name, bound in self._bounds.items()}

    def _scale(self, name: str, bound: Float, folded: Mapping[str, Float]) -> Float:
        layer, _, kind = name.rpartition(".")
        if kind == "value" and f"{layer}.o" in folded:
            bound = bound / of_values(self._config, folded[f"{layer}.o"]).reshape(bound.shape)
        least = bound.max(axis=1, keepdims=True) * np.float32(QUIETEST)
        held = np.maximum(bound, least) * np.float32(HEADROOM)
        return scale_for(held, np.dtype(np.float32), LARGEST_INT8)


def through_codes(values: Float, scale: Float) -> Float:
    """[positions, kv_heads, head_dim] as a cache of that scale gives them back."""
    codes: npt.NDArray[np.float32] = np.clip(np.rint(values / scale), -128, 127)
    codes *= scale
    return codes


def _lengths(keys: Float) -> Float:
    """Each channel in the place of its pair's length; the first half of a head pairs with the second."""
    first, second = np.split(keys, 2, axis=-1)
    length = np.hypot(first, second)
    return np.concatenate((length, length), axis=-1)
