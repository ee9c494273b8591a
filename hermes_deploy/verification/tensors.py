"""Reads the weights of a saved graph: one hash over all of them, and linears as an engine sees them.

Takes the path of a saved `.onnx` (weights inside or in files beside it); nothing is loaded whole.
Knows no checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.errors import GateError
from hermes_deploy.graphs import ATTRIBUTE_LINEAR
from hermes_deploy.quantization.forms import COLUMNS

_PIECE = 1 << 20
_SLAB = 1 << 22
"""Elements that are dequantized at once."""


def tensors_sha256(onnx_path: Path) -> str:
    """sha256 over name, type, shape and bytes of every initializer, in order of name.

    Equal for two graphs exactly when an engine made from either holds the same numbers; how the
    file lays them out does not matter. Read in 1 MiB pieces.
    """
    digest = hashlib.sha256()
    tensors = {name: value.const_value for name, value in ir.load(onnx_path).graph.initializers.items()}
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor is None:
            raise GateError(f"{onnx_path}: initializer {name} has no value")
        digest.update(f"{name}\0{tensor.dtype.name}\0{list(tensor.shape.numpy())}\0{tensor.nbytes}\0".encode())
        for piece in _pieces(tensor):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(tensor: ir.TensorProtocol) -> Iterator[bytes]:
    if not isinstance(tensor, ir.ExternalTensor):
        yield tensor.tobytes()
        return
    left = tensor.length or tensor.nbytes
    with Path(tensor.path).open("rb") as stream:
        stream.seek(tensor.offset or 0)
        while left > 0:
            piece = stream.read(min(_PIECE, left))
            if not piece:
                raise GateError(f"{tensor.path} ends before the weights of {tensor.name}; build again")
            left -= len(piece)
            yield piece


@dataclass(frozen=True)
class SavedLinear:
    """A linear's weight [rows, columns] as stored: `codes` are dequantized with `scale` and `zero`.

    `scale` is None for a weight that is not quantized, [columns] for one scale a column,
    [rows / block, columns] for blocks along the rows. `zero` is None where it is 0 everywhere.
    """

    name: str
    codes: ir.TensorProtocol
    scale: npt.NDArray[np.float32] | None
    zero: npt.NDArray[np.float32] | None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape.numpy()
        return rows, columns

    def slabs(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """(first row, float32 [some rows, columns]) from top to bottom."""
        rows, columns = self.shape
        codes = self.codes.numpy()
        block = rows if self.scale is None or self.scale.ndim == 1 else rows // len(self.scale)
        step = max(1, _SLAB // columns)
        step = step // block * block or block if self.scale is not None and self.scale.ndim == 2 else step
        for top in range(0, rows, step):
            piece = codes[top : top + step].astype(np.float32)
            if self.scale is not None and self.scale.ndim == 1:
                piece *= self.scale
            elif self.scale is not None:
                blocked = piece.reshape(-1, block, columns)
                where = slice(top // block, top // block + len(blocked))
                if self.zero is not None:
                    blocked -= self.zero[where, None]
                blocked *= self.scale[where, None]
            yield top, piece


def saved_linears(onnx_path: Path) -> Iterator[SavedLinear]:
    """Every tagged linear of the graph, in order.

    Raises GateError for one whose weight is neither stored nor dequantized from what is stored.
    """
    for node in ir.load(onnx_path).graph:
        name = node.metadata_props.get(ATTRIBUTE_LINEAR)
        if name is None:
            continue
        weight = node.inputs[1]
        source = None if weight is None else weight.producer()
        if weight is not None and source is None and weight.const_value is not None:
            yield SavedLinear(name, weight.const_value, None, None)
            continue
        stored = [] if source is None else [None if v is None else v.const_value for v in source.inputs]
        if source is None or source.op_type != "DequantizeLinear" or len(stored) < 2 or None in stored:
            raise GateError(f"{onnx_path}: the weight of {name} is not stored in the graph; it cannot be checked")
        codes, scale = stored[0], stored[1]
        assert codes is not None and scale is not None
        zero = _floats(stored[2]) if len(stored) > 2 and stored[2] is not None else None
        factors = [use.node.inputs[1] for use in node.outputs[0].uses() if COLUMNS in use.node.metadata_props]
        scales = _floats(scale)
        if factors and factors[0] is not None and factors[0].const_value is not None:
            scales = scales.reshape(()) * _floats(factors[0].const_value)
        yield SavedLinear(name, codes, scales, zero if zero is not None and zero.any() else None)


def saved_vectors(onnx_path: Path) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """(name, tensor) of every stored weight that is no linear's: norms and the embedding."""
    model = ir.load(onnx_path)
    for name, value in model.graph.initializers.items():
        if name.endswith("norm.weight") or name == "embedding.weight":
            assert value.const_value is not None
            yield name, value.const_value


def _floats(tensor: ir.TensorProtocol) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tensor.numpy(), dtype=np.float32)
