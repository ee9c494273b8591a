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
from hermes_deploy.quantization.forms import COLUMNS, DYNAMIC_FP4
from hermes_deploy.verification.inputs import STATIC_CODES, BlockCodes, InputCodes, StaticCodes
from hermes_deploy.verification.stored import rows_of, vector_of

Float = npt.NDArray[np.float32]

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
    """A linear's weight [rows, columns] as stored: (codes - zero) * scale.

    `scale` is None for a weight that is not quantized; else one number, one for each index of `axis`,
    or one for each `block` of them. `zero` is None where it is 0 everywhere, else shaped as `scale`.
    `coded` is what the linear's input goes through before it is multiplied.
    """

    name: str
    codes: ir.TensorProtocol
    scale: Float | None = None
    zero: Float | None = None
    axis: int = 0
    block: int = 0
    coded: InputCodes | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape.numpy()
        return rows, columns

    def slabs(self) -> Iterator[tuple[int, Float]]:
        """(first row, float32 [some rows, columns]) from top to bottom."""
        rows, columns = self.shape
        unit = self.block if self.axis == 0 and self.block else 1
        step = max(1, _SLAB // columns // unit) * unit
        for top in range(0, rows, step):
            piece = rows_of(self.codes, top, top + step)
            if self.scale is not None:
                if self.zero is not None:
                    _each(np.subtract, piece, self.zero, self.axis, self.block, top)
                _each(np.multiply, piece, self.scale, self.axis, self.block, top)
            yield top, piece

    def matrix(self) -> Float:
        """All of it, float32 [rows, columns]."""
        whole = np.empty(self.shape, dtype=np.float32)
        for top, piece in self.slabs():
            whole[top : top + len(piece)] = piece
        return whole


def saved_linears(onnx_path: Path) -> Iterator[SavedLinear]:
    """Every tagged linear of the graph, in order.

    Raises GateError for one whose weight is neither stored nor dequantized from what is stored.
    """
    for node in ir.load(onnx_path).graph:
        name = node.metadata_props.get(ATTRIBUTE_LINEAR)
        if name is None:
            continue
        weight = node.inputs[1]
        coded = _input_codes(node.inputs[0])
        if weight is not None and weight.producer() is None and weight.const_value is not None:
            yield SavedLinear(name, weight.const_value, coded=coded)
            continue
        source = None if weight is None else weight.producer()
        codes = None if source is None or source.inputs[0] is None else source.inputs[0].const_value
        if source is None or source.op_type != "DequantizeLinear" or codes is None:
            raise GateError(f"{onnx_path}: the weight of {name} is not stored in the graph; it cannot be checked")
        scale, zero, axis, block = _terms(source)
        factors = _columns(node)
        if factors is not None:
            if scale.size != 1 or zero is not None:
                raise GateError(f"{onnx_path}: {name} scales its columns twice; it cannot be checked")
            scale, axis = scale.reshape(()) * factors, 1
        yield SavedLinear(name, codes, scale, zero, axis, block, coded)


def saved_vectors(onnx_path: Path) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """(name, tensor) of every stored weight that is no linear's: norms and the embedding."""
    model = ir.load(onnx_path)
    for name, value in model.graph.initializers.items():
        if name.endswith("norm.weight") or name == "embedding.weight":
            assert value.const_value is not None
            yield name, value.const_value


def _columns(node: ir.Node) -> Float | None:
    """What the output of a linear is multiplied with, column by column, that belongs to its weight."""
    users = [use.node for use in node.outputs[0].uses()]
    if len(users) != 1 or COLUMNS not in users[0].metadata_props:
        return None
    return _floats(users[0].inputs[1], users[0])


def _input_codes(value: ir.Value | None) -> InputCodes | None:
    """What stands before a linear's input, None where it is read as it is."""
    back = None if value is None else value.producer()
    if back is None or back.op_type != "DequantizeLinear" or back.inputs[0] is None:
        return None
    there = back.inputs[0].producer()
    if there is not None and there.op_type == DYNAMIC_FP4:
        return BlockCodes(float(_floats(there.inputs[1], there).reshape(())))
    if there is None or there.op_type != "QuantizeLinear":
        return None
    scale, zero, _, block = _terms(there)
    code = None if len(there.inputs) < 3 or there.inputs[2] is None else there.inputs[2].const_value
    dtype = None if code is None else code.dtype.numpy()
    if block or dtype not in STATIC_CODES:
        raise GateError(f"{there.name}: the codes of this input are not of a form that the gate can follow")
    return StaticCodes(scale, np.zeros(1, np.float32) if zero is None else zero, dtype)


def _terms(node: ir.Node) -> tuple[Float, Float | None, int, int]:
    """(scale, zero or None, axis, block or 0) of a QuantizeLinear or DequantizeLinear of a matrix."""
    scale = _floats(node.inputs[1], node)
    zero = _floats(node.inputs[2], node) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    axis, block = (
        node.attributes[name].as_int() if name in node.attributes else None for name in ("axis", "block_size")
    )
    return scale, zero if zero is not None and zero.any() else None, (1 if axis is None else axis) % 2, block or 0


def _floats(value: ir.Value | None, user: ir.Node) -> Float:
    """A stored tensor as float32, or one that is dequantized or cast from stored ones, however deep:
    scales may have scales."""
    if value is not None and value.const_value is not None:
        return vector_of(value.const_value)
    source = None if value is None else value.producer()
    if source is not None and source.op_type == "Cast":
        to = ir.DataType(source.attributes["to"].as_int()).numpy()
        return _floats(source.inputs[0], source).astype(to).astype(np.float32)
    if source is not None and source.op_type == "DequantizeLinear":
        whole = np.array(_floats(source.inputs[0], source))
        scale, zero, axis, block = _terms(source)
        if zero is not None:
            _each(np.subtract, whole, zero, axis, block)
        _each(np.multiply, whole, scale, axis, block)
        return whole
    raise GateError(f"{user.name}: its scale or zero point is not stored in the graph; it cannot be checked")


def _each(operation: np.ufunc, piece: Float, terms: Float, axis: int, block: int, top: int = 0) -> None:
    """`piece` with every element's own of `terms`, in place. `piece` begins at row `top` of a matrix."""
    if terms.size == 1:
        operation(piece, terms.reshape(()), out=piece)
        return
    if axis == 0:
        first = top // (block or 1)
        terms = terms[first : first + -(-len(piece) // (block or 1))]
    if terms.ndim == 1:
        operation(piece, terms if axis == piece.ndim - 1 else terms[:, None], out=piece)
        return
    shape = (-1, block, piece.shape[1]) if axis == 0 else (len(piece), -1, block)
    blocked = piece.reshape(shape)
    operation(blocked, np.expand_dims(terms, axis + 1), out=blocked)
