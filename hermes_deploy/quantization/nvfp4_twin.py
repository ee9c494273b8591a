"""A graph with NVFP4 linears, rewritten so that ONNX Runtime's CPU kernels compute the same numbers.

ONNX Runtime has no kernels for 4-bit floats and does not know TensorRT's dynamic quantization. In the
twin the weight's bytes are read as UINT4 and looked up in the table of E2M1, and the activation's
quantization is spelled out. The stored tensors are the very ones of the graph: only their type is read
otherwise, whatever file they lie in.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hermes_deploy.quantization.forms import DYNAMIC_FP4
from hermes_deploy.quantization.nvfp4 import BLOCK, E2M1, LARGEST_E2M1


def nvfp4_twin(model: ir.Model) -> bool:
    """Rewrites `model` in place; says whether there was anything to rewrite."""
    graph = model.graph
    dynamic = [node for node in graph if node.op_type == DYNAMIC_FP4]
    for node in dynamic:
        _spell_out(graph, node)
    for value in list(graph.initializers.values()):
        if value.dtype == ir.DataType.FLOAT4E2M1:
            _look_up(graph, value)
    graph.opset_imports.pop("trt", None)
    return bool(dynamic)


class _Emitter:
    """Puts nodes before `place`, named after `name`."""

    def __init__(self, graph: ir.Graph, place: ir.Node, name: str) -> None:
        self._graph, self._place, self._name = graph, place, name
        self._count = 0

    def __call__(self, kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        self._count += 1
        node = ir.node(kind, inputs, attributes, name=f"{self._name}.{self._count}")
        node.outputs[0].name = node.name
        self._graph.insert_before(self._place, node)
        return node.outputs[0]

    def constant(self, array: object, dtype: type = np.float32) -> ir.Value:
        self._count += 1
        tensor = ir.tensor(np.asarray(array, dtype=dtype), name=f"{self._name}.{self._count}")
        value = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        self._graph.initializers[tensor.name or ""] = value
        return value


def _spell_out(graph: ir.Graph, node: ir.Node) -> None:
    """x -> (code, scale) -> value becomes x -> value in plain float32 arithmetic."""
    ((scaled, _),) = node.outputs[1].uses()
    ((valued, _),) = node.outputs[0].uses()
    x, whole = node.inputs
    assert x is not None and whole is not None
    emit = _Emitter(graph, node, f"{node.name}.twin")
    dtype = (whole.dtype or ir.DataType.FLOAT16).value
    ours = emit("Cast", whole, to=ir.DataType.FLOAT)
    split = emit.constant([0, 0, -1, BLOCK], np.int64)
    blocked = emit("Cast", emit("Reshape", x, split), to=ir.DataType.FLOAT)
    peak = emit("ReduceMax", emit("Abs", blocked), emit.constant([-1], np.int64), keepdims=1)
    wanted = emit("Div", peak, emit("Mul", ours, emit.constant(LARGEST_E2M1)))
    stored = emit("Cast", emit("Cast", wanted, to=ir.DataType.FLOAT8E4M3FN, saturate=1), to=ir.DataType.FLOAT)
    # as the graph says it: the scale is a number of the activation's dtype
    scale = emit("Cast", emit("Cast", emit("Mul", stored, ours), to=dtype), to=ir.DataType.FLOAT)
    empty = emit("Equal", scale, emit.constant(0))
    steps = emit("Div", blocked, emit("Where", empty, emit.constant(1), scale))
    size = emit("Min", emit("Abs", steps), emit.constant(LARGEST_E2M1))
    # the distance between neighbouring codes: 0.5 below 2, 1 below 4, 2 above; Round takes ties to even, as E2M1 does
    wide = emit("Where", emit("Less", size, emit.constant(4)), emit.constant(1), emit.constant(2))
    apart = emit("Where", emit("Less", size, emit.constant(2)), emit.constant(0.5), wide)
    code = emit("Mul", emit("Mul", emit("Round", emit("Div", size, apart)), apart), emit("Sign", steps))
    value = emit("Cast", emit("Mul", code, scale), to=dtype)
    flat = emit("Reshape", value, emit.constant([0, 0, -1], np.int64))
    ir.convenience.replace_all_uses_with(valued.outputs[0], flat)
    graph.remove([valued, scaled, node], safe=True)


def _look_up(graph: ir.Graph, weight: ir.Value) -> None:
    """DequantizeLinear(E2M1 codes, scale) becomes table[codes] * scale."""
    ((node, _),) = weight.uses()
    scale = node.inputs[1]
    stored = weight.const_value
    assert scale is not None and isinstance(stored, ir.ExternalTensor) and weight.name is not None
    rows, columns = stored.shape.numpy()
    codes = ir.ExternalTensor(
        stored.location,
        stored.offset,
        stored.length,
        ir.DataType.UINT4,
        shape=stored.shape,
        name=weight.name,
        base_dir=stored.base_dir,
    )
    emit = _Emitter(graph, node, f"{node.name}.twin")
    bytes_ = ir.Value(name=weight.name, type=ir.TensorType(codes.dtype), shape=codes.shape, const_value=codes)
    table = emit.constant(np.arange(16, dtype=np.uint8).view(E2M1).astype(np.float32), np.float16)
    found = emit("Gather", table, emit("Cast", bytes_, to=ir.DataType.INT32))
    blocked = emit("Reshape", found, emit.constant([rows // BLOCK, BLOCK, columns], np.int64))
    scaled = emit("Mul", blocked, emit("Unsqueeze", scale, emit.constant([1], np.int64)))
    value = emit("Reshape", scaled, emit.constant([rows, columns], np.int64))
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    graph.remove(node, safe=True)
    del graph.initializers[weight.name]
    graph.initializers[weight.name] = bytes_
