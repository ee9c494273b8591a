"""Every form, as it is saved, computed by ONNX Runtime to the numbers of a plain numpy twin.

The twin takes the checkpoint's weights and the very inputs that a linear met in the graph: it
quantizes both by the book, multiplies in float32, and must give what the linear gave. What is between is
the saving, the packing, the graph's wiring and ONNX Runtime's reading of each operator.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.graphs import GraphSpec, build_decoder, linear_names, save_model
from hermes_deploy.quantization import ActivationRanges, find_linears, quantize
from hermes_deploy.quantization.nvfp4 import dequantize_blocks, quantize_blocks
from hermes_deploy.quantization.nvfp4_twin import nvfp4_twin
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import TARGETS

Float = npt.NDArray[np.float32]
E4M3, E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn


def plain(weight: Float, _: float, __: Float) -> tuple[Float, Callable[[Float], Float]]:
    return weight.astype(np.float16).astype(np.float32), lambda x: x


def int4(weight: Float, _: float, __: Float) -> tuple[Float, Callable[[Float], Float]]:
    """Blocks of 64 (the tiny model's), symmetric: -8..7 with max|w| at -8."""
    blocked = weight.reshape(-1, 64, weight.shape[1])
    scale = (np.abs(blocked).max(axis=1, keepdims=True) / 8).astype(np.float16).astype(np.float32)
    return (np.clip(np.rint(blocked / scale), -8, 7) * scale).reshape(weight.shape), lambda x: x


def int8(weight: Float, largest: float, _: Float) -> tuple[Float, Callable[[Float], Float]]:
    scale = np.abs(weight).max(axis=0) / 127
    step = np.float32(np.float16(largest / 127))
    return np.rint(weight / scale) * scale, lambda x: np.clip(np.rint(x / step), -128, 127) * step


def fp8(weight: Float, largest: float, _: Float) -> tuple[Float, Callable[[Float], Float]]:
    scale = np.abs(weight).max(axis=0) / 448
    step = np.float32(np.float16(largest / 448))
    codes = (weight / scale).astype(E4M3).astype(np.float32)
    return codes * scale, lambda x: np.clip(x / step, -448, 448).astype(E4M3).astype(np.float32) * step


def nvfp4(weight: Float, largest: float, power: Float) -> tuple[Float, Callable[[Float], Float]]:
    def of(values: Float, whole: np.float16) -> Float:
        """`values` [n, K], blocks of 16 along K."""
        blocked = values.reshape(len(values), -1, 16)
        scale = np.abs(blocked).max(axis=-1, keepdims=True) / np.float32(6) / np.float32(whole)
        scale = np.clip(scale, 0, 448).astype(E4M3).astype(np.float32) * np.float32(whole)
        codes = np.divide(blocked, scale, out=np.zeros_like(blocked), where=scale > 0)
        return (np.clip(codes, -6, 6).astype(E2M1).astype(np.float32) * scale).reshape(values.shape)

    smallest = np.finfo(np.float16).tiny
    # which code a block's largest weight becomes is searched for: tests of nvfp4 look at that
    stored = dequantize_blocks(quantize_blocks(weight, np.dtype(np.float16), importance=power))
    return stored, lambda x: of(x, np.float16(max(largest / 2688, smallest)))


TWINS = {"fp16": plain, "int4-rtn": int4, "int8-sq": int8, "fp8": fp8, "nvfp4": nvfp4}
CLOSE = {"fp16": 1e-3, "int4-rtn": 2e-3, "int8-sq": 5e-3, "fp8": 1e-2, "nvfp4": 2e-2}
"""Largest ||ours - twin|| / ||twin||. Inputs are fp16 and ONNX Runtime adds in another order; where
an input is quantized, one that falls on the edge between two codes may fall to the other side."""


def run(path: Path, met: dict[str, str], positions: int = 24) -> tuple[dict[str, Float], dict[str, Float]]:
    """What each linear read (before any quantization: the values called `met`) and gave in a prefill."""
    model = ir.load(path)
    facts = dict(model.metadata_props)
    gives: dict[str, str] = {}
    for node in model.graph:
        if name := node.metadata_props.get("linear"):
            after = [use.node for use in node.outputs[0].uses() if "columns" in use.node.metadata_props]
            gives[name] = str((after[0] if after else node).outputs[0].name)
    nvfp4_twin(model)
    values = {value.name: value for node in model.graph for value in node.outputs}
    wanted = sorted({*met.values(), *gives.values()})
    for name in wanted:
        if values[name] not in model.graph.outputs:
            values[name].type, values[name].shape = ir.TensorType(ir.DataType.FLOAT16), ir.Shape(["b", "s", name])
            model.graph.outputs.append(values[name])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["ConstantFolding"],
    )
    cache = np.zeros((1, int(facts["kv_heads"]), int(facts["max_context"]), int(facts["head_dim"])), np.float16)
    at = np.arange(positions)[None]
    feed = {node.name: cache for node in session.get_inputs() if node.name.startswith("past_")}
    feed |= {"input_ids": (at * 7 + 60) % 250, "position_ids": at, "logits_positions": at}
    feed |= {"write_indices": np.zeros(1, np.int64)}
    found = dict(zip(wanted, session.run(wanted, feed), strict=True))
    return tuple({name: found[value][0].astype(np.float32) for name, value in each.items()} for each in (met, gives))


@pytest.mark.parametrize("recipe", TWINS)
def test_the_saved_graph_computes_what_its_numpy_twin_computes(
    recipe: str, tiny: Checkpoint, ranges: ActivationRanges, tmp_path: Path
) -> None:
    where = next(t for t in TARGETS.values() if t.engine == "tensorrt" and load_recipe(recipe).trouble_on(t) is None)
    model = build_decoder(GraphSpec(tiny.config, "portable", "fp16", 64), tiny.tensors)
    linears = {linear.name: linear for linear in find_linears(model)}
    weights = {name: linear.float32() for name, linear in linears.items()}
    met = {name: linear.node.inputs[0].name for name, linear in linears.items()}  # type: ignore[union-attr]
    report = quantize(model, load_recipe(recipe), where, None if recipe == "int4-rtn" else ranges)
    save_model(model, tmp_path / "model.onnx")
    reads, gives = run(tmp_path / "model.onnx", met)
    assert sorted(gives) == sorted(linear_names(tiny.config.layers))
    for name, ours in gives.items():
        quantized = report.forms[name] != "fp16"
        weight, seen = (TWINS[recipe] if quantized else plain)(weights[name], ranges.largest[name], ranges.power[name])
        twin = seen(reads[name]) @ weight
        assert np.linalg.norm(ours - twin) < CLOSE[recipe] * np.linalg.norm(twin), name
