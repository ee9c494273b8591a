"""A portable graph, changed in memory so that ONNX Runtime dequantizes a matrix only when it is used.

Nothing in a graph says that a weight's DequantizeLinear should wait: it has no input but stored
tensors. And where ONNX Runtime adds casts for fp16, these count as later than every node of the
file, so all matrices of a model would be dequantized before the first one is multiplied. Here each
takes one input through a Reshape to its own shape, and that shape is computed from the size of what
the matrix will be multiplied with (times zero): the same numbers, one matrix at a time.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hermes_deploy.graphs import ATTRIBUTE_LINEAR


def wait_for_inputs(model: ir.Model) -> None:
    """Rewrites every tagged linear of `model` in place. No stored tensor is touched."""
    graph = model.graph
    zero = _constant(graph, "late.zero", np.zeros((), np.int64))
    for node in list(graph):
        name, x, weight = node.metadata_props.get(ATTRIBUTE_LINEAR), node.inputs[0], node.inputs[1:2]
        if name is None or x is None or not weight or weight[0] is None:
            continue
        user, index = _first_use(node, 1)
        stored = user.inputs[index]
        assert stored is not None and stored.shape is not None
        own = _constant(graph, f"{name}.late.own", np.asarray(stored.shape.numpy(), np.int64))
        size = ir.node("Size", [x], name=f"{name}.late.size")
        nothing = ir.node("Mul", [size.outputs[0], zero], name=f"{name}.late.nothing")
        shape = ir.node("Add", [own, nothing.outputs[0]], name=f"{name}.late.shape")
        late = ir.node("Reshape", [stored, shape.outputs[0]], name=f"{name}.late")
        for made in (size, nothing, shape, late):
            made.outputs[0].name = made.name
        late.outputs[0].type, late.outputs[0].shape = stored.type, stored.shape
        graph.insert_before(user, [size, nothing, shape, late])
        user.replace_input_with(index, late.outputs[0])


def _first_use(node: ir.Node, index: int) -> tuple[ir.Node, int]:
    """The node that reads the stored tensors behind an input, and which of its inputs to hold up: of a
    DequantizeLinear the scale, which is smaller than the codes."""
    value = node.inputs[index]
    source = None if value is None else value.producer()
    if source is None:
        return node, index
    if source.op_type == "DequantizeLinear" and source.inputs[1] is not None and source.inputs[1].producer() is None:
        return source, 1
    return _first_use(source, 0)


def _constant(graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.initializers[name] = value
    return value
