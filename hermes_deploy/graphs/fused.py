"""The same graph in fewer and fatter nodes, for the operators of `kernels/`. Pure.

Takes a quantized model of the ort dialect, as it was saved, and rewrites it in place; weights stay where they are
(both files of a build read the same data). In each block

    SkipSimplifiedLayerNormalization, DequantizeLinear, MatMul      one AddNormLinear
    ... and Split, QuickGelu, Mul behind it                         one gated AddNormLinear
    DequantizeLinear, MatMul                                        one Linear
    GroupQueryAttention, or the If of two ways over an int8 cache   one Attention

Only what the operators can take is rewritten: weights in blocks of a multiple of 32, UINT4 with zero points or INT8
without; gated only where N is a multiple of 32; heads of at most 256. The rest stays as it was: ONNX Runtime runs it.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from hermes_deploy.graphs.spec import ATTENTION_SCALES, ATTRIBUTE_LINEAR
from hermes_deploy.kernels import DOMAIN, FACT, MOST_HEAD_DIM, PARTLY, WHOLE

_ATTENTION_INPUTS = (
    *("qkv", "key", "value", "past_key", "past_value", "seqlens_k", "total", "cos", "sin"),
    *("position_ids", "attention_bias", "head_sink", "key_scale", "value_scale"),
)
"""Of GroupQueryAttention, in order."""
_ROUGH = {"GroupQueryAttention", "If", "DequantizeLinear", "QuantizeLinear"}
_LANES = 16
_GROUP = 32
_BITS = {ir.DataType.UINT4: 4, ir.DataType.INT8: 8}


def fuse(model: ir.Model) -> int:
    """Rewrites `model`; how many nodes of our own it has then."""
    made = 0
    for node in list(model.graph):
        if node.op_type == "MatMul" and ATTRIBUTE_LINEAR in node.metadata_props:
            made += _fuse_linear(model.graph, node)
        elif node.op_type in ("GroupQueryAttention", "If"):
            made += _fuse_attention(model.graph, node)
    if made:
        model.opset_imports[DOMAIN] = 1
        left = {node.op_type for node in model.graph} & _ROUGH
        model.metadata_props[FACT] = PARTLY if left else WHOLE
    return made


def _fuse_linear(graph: ir.Graph, matmul: ir.Node) -> bool:
    x, weight = matmul.inputs
    assert x is not None and weight is not None
    dequantize = weight.producer()
    if dequantize is None or not _takes(dequantize):
        return False
    bits = _BITS[_input(dequantize, 0).dtype or ir.DataType.UNDEFINED]
    columns = (_input(dequantize, 0).shape or [0])[-1]
    behind = _gate(matmul.outputs[0]) if isinstance(columns, int) and columns % (2 * _LANES) == 0 else []
    norm = x.producer()
    joined = norm is not None and norm.op_type == "SkipSimplifiedLayerNormalization" and _used_once(x)
    before = list(norm.inputs[:3]) if joined and norm is not None else [x]
    result = (behind[-1] if behind else matmul).outputs[0]
    attributes: dict[str, Any] = {"gated": int(bool(behind))}
    outputs = [ir.Value(name=f"{result.name}.fused", type=result.type, shape=result.shape)]
    if joined and norm is not None:
        attributes["epsilon"] = norm.attributes["epsilon"].as_float()
        total = norm.outputs[3]
        outputs.append(ir.Value(name=f"{total.name}.fused", type=total.type, shape=total.shape))
    fused = ir.node(
        f"{'AddNorm' if joined else ''}Linear{bits}",
        [*before, *dequantize.inputs],
        attributes,
        domain=DOMAIN,
        name=matmul.name,
        outputs=outputs,
        metadata_props=dict(matmul.metadata_props),
    )
    graph.insert_after(matmul, fused)
    _replace(result, outputs[0])
    if joined and norm is not None:
        _replace(norm.outputs[3], outputs[1])
    gone = [*reversed(behind), matmul, *([norm] if joined and norm is not None else [])]
    graph.remove(gone, safe=True)
    if not dequantize.outputs[0].uses():
        graph.remove(dequantize, safe=True)
    return True


def _fuse_attention(graph: ir.Graph, node: ir.Node) -> bool:
    """GroupQueryAttention over packed qkv; of an If the branch in which the kernel reads codes itself."""
    inner = node
    if node.op_type == "If":
        branch = node.attributes["else_branch"].as_graph()
        inner = next((each for each in branch if each.op_type == "GroupQueryAttention"), node)
    given = {name: value for name, value in zip(_ATTENTION_INPUTS, inner.inputs, strict=False) if value is not None}
    packed = "key" not in given and inner.op_type == "GroupQueryAttention"
    scales = [given[f"{kind}_scale"] for kind in ATTENTION_SCALES if f"{kind}_scale" in given]
    if not packed or inner.attributes["do_rotary"].as_int() != 1:
        return False
    head_dim = (given["past_key"].shape or [0])[-1]
    if not isinstance(head_dim, int) or not 0 < head_dim <= MOST_HEAD_DIM:
        return False
    names = ("qkv", "past_key", "past_value", "seqlens_k", "cos", "sin")
    outputs = [ir.Value(name=f"{old.name}.fused", type=old.type, shape=old.shape) for old in node.outputs]
    fused = ir.node(
        f"Attention{8 if scales else 32}",
        [*(given[name] for name in names), *scales],
        {
            "heads": inner.attributes["num_heads"].as_int(),
            "kv_heads": inner.attributes["kv_num_heads"].as_int(),
            "window": inner.attributes["local_window_size"].as_int(),
            "scale": inner.attributes["scale"].as_float(),
        },
        domain=DOMAIN,
        name=node.name,
        outputs=outputs,
    )
    graph.insert_after(node, fused)
    for old, new in zip(node.outputs, outputs, strict=True):
        _replace(old, new)
    graph.remove(node, safe=True)
    return True


def _takes(dequantize: ir.Node) -> bool:
    """Whether the operators read a weight in that form."""
    if dequantize.op_type != "DequantizeLinear" or "block_size" not in dequantize.attributes:
        return False
    codes, block = _input(dequantize, 0), dequantize.attributes["block_size"].as_int()
    shape = codes.shape
    if codes.dtype not in _BITS or shape is None or len(shape) != 2 or dequantize.attributes["axis"].as_int() != 0:
        return False
    rows = int(shape[0])  # type: ignore[arg-type]
    zeros = len(dequantize.inputs) > 2
    return (
        zeros == (codes.dtype == ir.DataType.UINT4)
        and _input(dequantize, 1).dtype == ir.DataType.FLOAT
        and block % _GROUP == rows % block == 0
    )


def _gate(product: ir.Value) -> list[ir.Node]:
    """Split, QuickGelu and Mul that make silu(gate) * up of a linear's output; empty where it goes elsewhere."""
    users = [use.node for use in product.uses()]
    if len(users) != 1 or users[0].op_type != "Split":
        return []
    split = users[0]
    halves = [[use.node for use in half.uses()] for half in split.outputs]
    if [len(each) for each in halves] != [1, 1] or halves[0][0].op_type != "QuickGelu":
        return []
    activation, multiply = halves[0][0], halves[1][0]
    return [split, activation, multiply] if multiply.op_type == "Mul" else []


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _used_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _replace(old: ir.Value, new: ir.Value) -> None:
    """`new` takes the uses and the name of `old`, also where that is an output of the graph."""
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}.before"
    new.name = name
