"""A decoder-like ONNX file of a few hundred kB in the portable dialect, for engine tests.

Hand-made with onnx.helper on purpose: it fixes the forms that TensorRT must turn into
low-precision kernels, apart from whatever `graphs/` and `quantization/` emit today.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Form = Literal["fp16", "int4", "int8", "fp8", "w4a8"]

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True)
class Decoder:
    """`fp32_scale`: scale in fp32 with a Cast behind it, the form that loses the INT4 fusion.

    `scale_a_column`: fp8 and int8 weights with one DequantizeLinear of N scales, whose sums overflow.
    `keeps_down`: the down projections stay in fp16.

    `stray_input`: "unused" adds an input that no node reads; "shape_only" one that only an
    operator reads whose result nobody needs.
    """

    form: Form = "fp16"
    block_size: int = 128
    fp32_scale: bool = False
    scale_a_column: bool = False
    keeps_down: bool = False
    stray_input: Literal["", "unused", "dead_end", "nonpad_kv_seqlen"] = ""
    layers: int = 2
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 512
    vocab: int = 320
    max_context: int = 128

    @property
    def quantized_linears(self) -> int:
        return 0 if self.form == "fp16" else (4 - self.keeps_down) * self.layers


class _Writer:
    def __init__(self, decoder: Decoder) -> None:
        self.d = decoder
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def constant(self, name: str, array: npt.NDArray) -> str:
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, inputs: list[str], name: str, outputs: int = 1, **attributes: object) -> list[str]:
        outs = [name] if outputs == 1 else [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, outs, name=f"node_{name}", **attributes))
        return outs

    def weight(self, shape: tuple[int, int], spread: float = 0.05) -> npt.NDArray[np.float32]:
        return (self.random.standard_normal(shape) * spread).astype(np.float32)

    def linear(self, x: str, name: str, k: int, n: int) -> str:
        w = self.weight((k, n))
        if self.d.form == "fp16" or (self.d.keeps_down and name.startswith("down")):
            return self.op("MatMul", [x, self.constant(f"{name}_w", w.astype(np.float16))], name)[0]
        if self.d.form in ("int4", "w4a8"):
            block = self.d.block_size
            scale = np.abs(w.reshape(k // block, block, n)).max(axis=1) / 7
            q = np.clip(np.rint(w / np.repeat(scale, block, axis=0)), -8, 7).astype(ml_dtypes.int4)
            self.constant(f"{name}_w", q)
            if self.d.fp32_scale:
                self.constant(f"{name}_s", scale.astype(np.float32))
                wide = self.op("DequantizeLinear", [f"{name}_w", f"{name}_s"], f"{name}_wide", axis=0, block_size=block)
                dq = self.op("Cast", wide, f"{name}_dq", to=TensorProto.FLOAT16)
            else:
                self.constant(f"{name}_s", scale.astype(np.float16))
                dq = self.op("DequantizeLinear", [f"{name}_w", f"{name}_s"], f"{name}_dq", axis=0, block_size=block)
            return self.op("MatMul", [self.coded(x, name, E4M3) if self.d.form == "w4a8" else x, dq[0]], name)[0]
        codes, largest = (E4M3, 448) if self.d.form == "fp8" else (np.dtype(np.int8), 127)
        scale = np.abs(w).max(axis=0) / largest
        self.constant(f"{name}_w", (w / scale).astype(codes))
        if self.d.scale_a_column:
            self.constant(f"{name}_s", scale.astype(np.float16))
            self.constant(f"{name}_z", np.zeros(n, dtype=codes))
            dq = self.op("DequantizeLinear", [f"{name}_w", f"{name}_s", f"{name}_z"], f"{name}_dq", axis=1)
            return self.op("MatMul", [self.coded(x, name, codes), dq[0]], name)[0]
        self.constant(f"{name}_s", scale.min().astype(np.float16))
        self.constant(f"{name}_z", np.zeros((), dtype=codes))
        self.constant(f"{name}_c", (scale / scale.min()).astype(np.float16))
        dq = self.op("DequantizeLinear", [f"{name}_w", f"{name}_s", f"{name}_z"], f"{name}_dq")
        product = self.op("MatMul", [self.coded(x, name, codes), dq[0]], name)
        return self.op("Mul", [product[0], f"{name}_c"], f"{name}_columns")[0]

    def coded(self, x: str, name: str, codes: np.dtype) -> str:
        self.constant(f"{name}_xs", np.array(0.02, dtype=np.float16))
        self.constant(f"{name}_xz", np.array(0, dtype=codes))
        xq = self.op("QuantizeLinear", [x, f"{name}_xs", f"{name}_xz"], f"{name}_xq")
        return self.op("DequantizeLinear", [xq[0], f"{name}_xs", f"{name}_xz"], f"{name}_xdq")[0]

    def norm(self, x: str, name: str) -> str:
        self.constant(f"{name}_g", np.ones(self.d.hidden, dtype=np.float16))
        return self.op("RMSNormalization", [x, f"{name}_g"], name, axis=-1, epsilon=1e-5)[0]

    def input(self, name: str, kind: int, shape: list[int | str]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: list[int | str]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def layer(self, i: int, x: str) -> str:
        d = self.d
        q, kv = d.heads * d.head_dim, d.kv_heads * d.head_dim
        qkv = self.linear(self.norm(x, f"attn_norm_{i}"), f"qkv_{i}", d.hidden, q + 2 * kv)
        parts = self.op("Split", [qkv, "qkv_sizes"], f"split_{i}", 3, axis=-1)
        heads = []
        for part, kind, count in zip(parts, "qkv", (d.heads, d.kv_heads, d.kv_heads), strict=True):
            self.constant(f"{kind}_shape_{i}", np.array([0, 0, count, d.head_dim], dtype=np.int64))
            four = self.op("Reshape", [part, f"{kind}_shape_{i}"], f"{kind}4_{i}")
            turned = self.op("Transpose", four, f"{kind}t_{i}", perm=[0, 2, 1, 3])[0]
            if kind != "v":
                turned = self.op("RotaryEmbedding", [turned, "cos", "sin", "position_ids"], f"{kind}r_{i}")[0]
            heads.append(turned)
        cache: list[int | str] = ["batch", d.kv_heads, d.max_context, d.head_dim]
        present = []
        for kind, fresh in zip(("key", "value"), heads[1:], strict=True):
            past = self.input(f"past_{kind}_{i}", TensorProto.FLOAT16, cache)
            name = f"present_{kind}_{i}"
            present += self.op("TensorScatter", [past, fresh, "write_indices"], name, axis=2)
            self.output(name, TensorProto.FLOAT16, cache)
        operands = [heads[0], *present, "mask"]
        if d.stray_input == "nonpad_kv_seqlen":
            operands += ["", "", "nonpad_kv_seqlen"]
        attended = self.op("Attention", operands, f"attention_{i}", scale=d.head_dim**-0.5)
        back = self.op("Transpose", attended, f"back_{i}", perm=[0, 2, 1, 3])
        flat = self.op("Reshape", [back[0], "flat_shape"], f"flat_{i}")
        x = self.op("Add", [x, self.linear(flat[0], f"o_{i}", q, d.hidden)], f"residual_{i}")[0]
        both = self.linear(self.norm(x, f"mlp_norm_{i}"), f"gate_up_{i}", d.hidden, 2 * d.intermediate)
        gate, up = self.op("Split", [both], f"gate_up_split_{i}", 2, axis=-1, num_outputs=2)
        silu = self.op("Mul", [gate, self.op("Sigmoid", [gate], f"sigmoid_{i}")[0]], f"silu_{i}")
        hidden = self.op("Mul", [silu[0], up], f"mlp_{i}")
        down = self.linear(hidden[0], f"down_{i}", d.intermediate, d.hidden)
        return self.op("Add", [x, down], f"out_{i}")[0]

    def shared(self) -> None:
        """Tables and the mask that every layer reads."""
        d = self.d
        angles = np.arange(d.max_context)[:, None] * 10000.0 ** (-np.arange(0, d.head_dim, 2) / d.head_dim)
        self.constant("cos", np.cos(angles).astype(np.float16))
        self.constant("sin", np.sin(angles).astype(np.float16))
        self.constant("qkv_sizes", np.array([d.heads * d.head_dim] + [d.kv_heads * d.head_dim] * 2, dtype=np.int64))
        self.constant("flat_shape", np.array([0, 0, d.heads * d.head_dim], dtype=np.int64))
        self.constant("kv_positions", np.arange(d.max_context, dtype=np.int64)[None, None, None, :])
        self.constant("zero", np.array(0, dtype=np.float16))
        self.constant("minus_infinity", np.array(-np.inf, dtype=np.float16))
        self.constant("query_axes", np.array([1, 3], dtype=np.int64))
        query = self.op("Unsqueeze", ["position_ids", "query_axes"], "query_positions")
        seen = self.op("LessOrEqual", ["kv_positions", query[0]], "seen")
        self.op("Where", [seen[0], "zero", "minus_infinity"], "mask")

    def model(self) -> onnx.ModelProto:
        d = self.d
        self.input("input_ids", TensorProto.INT64, ["batch", "seq"])
        self.input("position_ids", TensorProto.INT64, ["batch", "seq"])
        self.input("write_indices", TensorProto.INT64, ["batch"])
        self.input("logits_positions", TensorProto.INT64, ["batch", "rows"])
        if d.stray_input:
            self.input(d.stray_input, TensorProto.INT64, ["batch"])
        if d.stray_input == "dead_end":
            self.op("Add", ["dead_end", "dead_end"], "nobody_reads_this")
        self.shared()
        embedding = self.constant("embedding", self.weight((d.vocab, d.hidden), 1.0).astype(np.float16))
        x = self.op("Gather", [embedding, "input_ids"], "embedded")[0]
        for i in range(d.layers):
            x = self.layer(i, x)
        self.constant("last_axis", np.array([2], dtype=np.int64))
        self.constant("hidden_repeats", np.array([1, 1, d.hidden], dtype=np.int64))
        index = self.op("Unsqueeze", ["logits_positions", "last_axis"], "row_index")
        index = self.op("Tile", [index[0], "hidden_repeats"], "row_index_wide")
        rows = self.op("GatherElements", [self.norm(x, "final_norm"), index[0]], "rows_wanted", axis=1)
        head = self.constant("head", self.weight((d.hidden, d.vocab)).astype(np.float16))
        logits = self.op("MatMul", [rows[0], head], "logits_16")
        self.op("Cast", logits, "logits", to=TensorProto.FLOAT)
        self.output("logits", TensorProto.FLOAT, ["batch", "rows", d.vocab])
        graph = helper.make_graph(self.nodes, "decoder", self.inputs, self.outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=12)


def write_decoder(folder: Path, decoder: Decoder) -> Path:
    """`folder/model.onnx` with its weights in `model.onnx.data`, as the graphs room writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save_model(_Writer(decoder).model(), path, save_as_external_data=True, location="model.onnx.data")
    return path
