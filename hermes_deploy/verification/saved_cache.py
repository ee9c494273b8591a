"""The 8-bit cache of a saved graph, for the numpy decoder: what its scales do to keys and values.

Takes the path of a saved `.onnx`; fits `quantization.reference.Keep`, codes as the kernel does and adds
up, head by head, how far what comes back is from what went in. Held against what scales made for the
same texts would do (a channel's largest meets the largest code; rounding moves by a step / sqrt(12)),
so that it says whether a scale fits, whatever the model and its outliers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.errors import GateError
from hermes_deploy.graphs import ATTENTION_SCALES
from hermes_deploy.quantization.cache_scales import through_codes
from hermes_deploy.quantization.columns import LARGEST_INT8
from hermes_deploy.verification.result import CacheFit

Float = npt.NDArray[np.float32]


class SavedCache:
    """`scales` [kv_heads, head_dim] by "layers.0.key" and "layers.0.value"."""

    def __init__(self, scales: dict[str, Float]) -> None:
        self._scales = scales
        self._error: dict[str, npt.NDArray[np.float64]] = {}
        self._peak: dict[str, Float] = {}
        self._count: dict[str, int] = {}

    def __call__(self, name: str, values: Float) -> Float:
        """`values` [positions, kv_heads, head_dim] as the cache gives them back."""
        if name not in self._scales:
            raise GateError(f"{name} has no scale in the graph, whose cache is in 8 bits; the graph is not complete")
        coded = through_codes(values, self._scales[name])
        error = np.square(coded - values).sum(axis=(0, 2), dtype=np.float64)
        self._error[name] = self._error.get(name, 0) + error
        self._peak[name] = np.maximum(np.abs(values).max(axis=0), self._peak.get(name, np.float32(0)))
        self._count[name] = self._count.get(name, 0) + len(values)
        return coded

    @property
    def worst(self) -> CacheFit:
        """Of all heads of all layers so far; what is not a number is the worst."""
        found = []
        for name, errors in self._error.items():
            steps = self._peak[name].astype(np.float64) / LARGEST_INT8
            least = self._count[name] * np.square(steps).sum(axis=1) / 12
            found += [
                CacheFit(_times(error, own), f"{name}, head {head}")
                for head, (error, own) in enumerate(zip(errors, least, strict=True))
            ]
        return max(found, key=lambda fit: fit.misfit)


def saved_cache(onnx_path: Path) -> SavedCache | None:
    """None for a graph that keeps keys and values as they are. Raises GateError where a scale is missing."""
    model = ir.load(onnx_path)
    if not any(
        value.name and value.name.startswith("past_") and value.dtype == ir.DataType.INT8
        for value in model.graph.inputs
    ):
        return None
    scales = {}
    # a layer may have several, for few and for many tokens a step; those that read codes have scales
    every = ir.traversal.RecursiveGraphIterator(model.graph)
    nodes = [node for node in every if "k_quant_type" in node.attributes]
    for layer, node in enumerate(nodes):
        for kind, place in ATTENTION_SCALES.items():
            value = node.inputs[place] if len(node.inputs) > place else None
            if value is None or value.const_value is None:
                raise GateError(f"{onnx_path}: the {kind} scale of {node.name} is not stored in the graph")
            scale = value.const_value.numpy().astype(np.float32)
            scales[f"layers.{layer}.{kind}"] = scale.reshape(scale.shape[1], scale.shape[3])
    return SavedCache(scales)


def _times(error: float, least: float) -> float:
    ratio = float(np.sqrt(error / least)) if least else float(error != 0)
    return float("inf") if np.isnan(ratio) else ratio
