"""The linears of an ONNX file, whoever wrote it: their form and the matrix that an engine computes with.

Takes files with MatMuls that are named after their projection (optimum, modelopt) or tagged (ours,
joined matrices are cut apart again). Gives everything by projection, "layers.0.q", "layers.0.down", "head".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from hermes_deploy.checkpoints.checkpoint import DecoderConfig
from hermes_deploy.quantization.forms import COLUMNS

Matrix = npt.NDArray[np.float32]

_THEIRS = re.compile(r"/model/layers\.(\d+)/(?:self_attn|mlp)/(\w+)_proj/MatMul$|/lm_head/MatMul$")


@dataclass(frozen=True)
class Form:
    """How a linear is written down. None where the thing is not there.

    `weight`: type of the codes. `scale_of`: what shares a scale, "block of 128 along K", "column" or
    "tensor"; `column_scale`: where a scale for each column stands, at the weight or behind the product.
    `scale_like_activation`: the scale's dtype is that of the graph's activations, which TensorRT's
    fusion needs. `symmetric`: no zero point, or zeros. `activation`: codes of the input and what
    shares a scale there.
    """

    weight: str
    scale_of: str
    column_scale: str | None
    scale_like_activation: bool
    symmetric: bool
    activation: str | None


class Graph:
    """An ONNX file with its weights, and who makes each value."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(path)
        graph = self.model.graph
        self.makers = {output: node for node in graph.node for output in node.output}
        self.behind = {name: node for node in graph.node for name in node.input}
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def linears(self) -> dict[str, onnx.NodeProto]:
        """Name -> the MatMul; joined ones ("layers.0.qkv") under their own name."""
        found = {}
        for node in self.model.graph.node:
            tags = {entry.key: entry.value for entry in node.metadata_props}
            named = _THEIRS.fullmatch(node.name)
            if "linear" in tags:
                found[tags["linear"]] = node
            elif named and node.op_type == "MatMul":
                found[f"layers.{named[1]}.{named[2]}" if named[1] else "head"] = node
        return found

    def _above(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that make `name`, in order of the graph."""
        wanted, todo = set(), [name]
        while todo:
            maker = self.makers.get(todo.pop())
            if maker is not None and id(maker) not in wanted:
                wanted.add(id(maker))
                todo += maker.input
        return [node for node in self.model.graph.node if id(node) in wanted]

    def form(self, linear: onnx.NodeProto) -> Form | None:
        """None for a linear that is not quantized."""
        dequantize = next((n for n in self._above(linear.input[1]) if n.op_type == "DequantizeLinear"), None)
        if dequantize is None:
            return None
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in dequantize.attribute}
        scale = self.constants[dequantize.input[1]]
        maker = self.makers.get(dequantize.input[0])
        codes = maker.input[2] if maker is not None else dequantize.input[0]
        block, behind = attributes.get("block_size"), self._columns(linear) is not None
        by_column = not block and len(scale.dims) == 1 and scale.dims[0] > 1
        along = "K" if attributes.get("axis", 1) == 0 else "N"
        return Form(
            weight=_dtype(self.constants[codes]),
            scale_of=f"block of {block} along {along}" if block else "column" if by_column or behind else "tensor",
            column_scale="at the weight" if by_column else "behind the product" if behind else None,
            scale_like_activation=_dtype(scale) == self._activation_dtype(),
            symmetric=len(dequantize.input) < 3 or not numpy_helper.to_array(self.constants[dequantize.input[2]]).any(),
            activation=self._input_codes(linear),
        )

    def _columns(self, linear: onnx.NodeProto) -> Matrix | None:
        """What multiplies the columns of the product, where our graphs do that."""
        node = self.behind.get(linear.output[0])
        if node is None or COLUMNS not in {entry.key for entry in node.metadata_props}:
            return None
        return np.asarray(numpy_helper.to_array(self.constants[node.input[1]]), dtype=np.float32)

    def _activation_dtype(self) -> str:
        """That of the norms' weights: they are never quantized."""
        norms = [t for t in self.model.graph.initializer if len(t.dims) == 1 and "norm" in t.name]
        return _dtype(norms[0])

    def _input_codes(self, linear: onnx.NodeProto) -> str | None:
        maker = self.makers.get(linear.input[0])
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        scale, zero = self.constants[maker.input[1]], self.constants[maker.input[2]]
        return f"{_dtype(zero)} {'per tensor' if np.prod(scale.dims) == 1 else 'per channel'}"

    def weight(self, linear: onnx.NodeProto) -> Matrix:
        """The [K, N] matrix as ONNX Runtime computes it from what is stored."""
        name = linear.input[1]
        nodes = self._above(name)
        if not nodes:
            return np.asarray(numpy_helper.to_array(self.constants[name]), dtype=np.float32)
        read = {each for node in nodes for each in node.input}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in read]
        output = onnx.ValueInfoProto(name=name)
        graph = onnx.helper.make_graph(nodes, "weight", [], [output], kept)
        alone = onnx.helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        session = ort.InferenceSession(alone.SerializeToString(), _options(), providers=["CPUExecutionProvider"])
        stored = np.asarray(session.run([name], {})[0], dtype=np.float32)
        columns = self._columns(linear)
        return stored if columns is None else stored * columns


def read(path: Path, config: DecoderConfig) -> dict[str, tuple[Form | None, Matrix]]:
    """Every projection of the file: its form and its matrix [K, N]."""
    graph = Graph(path)
    found = {}
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    parts = {"qkv": (("q", queries), ("k", keys), ("v", keys))}
    parts["gate_up"] = (("gate", config.intermediate_size), ("up", config.intermediate_size))
    for name, node in graph.linears().items():
        form, matrix = graph.form(node), graph.weight(node)
        layer, _, kind = name.rpartition(".")
        at = 0
        for part, width in parts.get(kind, ((kind, matrix.shape[1]),)):
            found[f"{layer}.{part}" if layer else part] = (form, matrix[:, at : at + width])
            at += width
    return found


def logits(path: Path, ids: npt.NDArray[np.int64], config: DecoderConfig) -> npt.NDArray[np.float32]:
    """[B, S, vocabulary] of a whole prefill, by any of the graphs that we compare."""
    session = ort.InferenceSession(str(path), _options(), providers=["CPUExecutionProvider"])
    rows, length = ids.shape
    positions = np.tile(np.arange(length), (rows, 1))
    values: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": positions,
        "logits_positions": positions,
        "write_indices": np.zeros(rows, np.int64),
        "seqlens_k": np.full(rows, length - 1, np.int32),
        "total_sequence_length": np.array(length, np.int32),
    }
    feeds = {}
    for node in session.get_inputs():
        if node.name in values:
            feeds[node.name] = values[node.name]
            continue
        # a cache: our own graphs want all of it, genai's wants none of it
        dtype = np.float16 if node.type == "tensor(float16)" else np.float32
        stored = node.shape[2]
        past = 0 if node.name.startswith("past_key_values") else stored if isinstance(stored, int) else length
        feeds[node.name] = np.zeros((rows, config.kv_heads, past, config.head_dim), dtype)
    answer: npt.NDArray[np.float32] = session.run(["logits"], feeds)[0]
    return answer


def distance(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """||found - wanted|| / ||wanted||."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def agreement(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What differs, "key: ours / theirs"; empty where the two forms are one."""
    return [f"{key}: {ours[key]} / {theirs[key]}" for key in ours if ours[key] != theirs[key]]


def _dtype(tensor: onnx.TensorProto) -> str:
    return str(onnx.TensorProto.DataType.Name(tensor.data_type))


def _options() -> ort.SessionOptions:
    """Higher levels rewrite quantized graphs and change their numbers."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options
