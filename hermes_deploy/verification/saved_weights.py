"""The weights of a saved graph, for the numpy decoder: what quantization left of the checkpoint.

Takes the path of a saved `.onnx`; each matrix is dequantized when the decoder asks for it, and an
input that goes through codes in the graph goes through the same codes here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import GateError
from hermes_deploy.quantization.reference import Apply
from hermes_deploy.verification.stored import picked_columns, picked_rows, vector_of
from hermes_deploy.verification.tensors import SavedLinear, saved_linears, saved_vectors

Float = npt.NDArray[np.float32]


class SavedWeights:
    """Fits `quantization.reference.Weights`. Raises GateError for a graph that is not complete."""

    def __init__(self, onnx_path: Path) -> None:
        self._path = onnx_path
        self._linears = {linear.name: linear for linear in saved_linears(onnx_path)}
        self._vectors = dict(saved_vectors(onnx_path))

    def embed(self, ids: npt.NDArray[np.int64]) -> Float:
        if "embedding.weight" in self._vectors:
            return picked_rows(self._vectors["embedding.weight"], ids)
        # a tied table is stored once, as columns of the head
        return np.ascontiguousarray(picked_columns(self._linear("head").codes, ids).T)

    def norm(self, name: str) -> Float:
        return vector_of(self._vectors[f"{name}.weight"])

    def linear(self, name: str) -> Apply:
        """As in the decoder, and "head" too: states [n, hidden_size] to logits [n, vocab]."""
        stored = self._linear(name)
        matrix, coded = stored.matrix(), stored.coded

        def apply(inputs: Float) -> Float:
            product: Float = (inputs if coded is None else coded(inputs)) @ matrix
            return product

        return apply

    def _linear(self, name: str) -> SavedLinear:
        if name not in self._linears:
            raise GateError(f"{self._path}: no linear is tagged {name}; the graph is not complete")
        return self._linears[name]
