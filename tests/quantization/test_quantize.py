"""What `quantize` makes of a graph, on each target."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import QuantizationError, TargetError
from hermes_deploy.graphs import GraphSpec, build_decoder, linear_names, save_model
from hermes_deploy.quantization import ActivationRanges, Preparation, QuantizationReport, quantize
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target


def make(
    checkpoint: Checkpoint,
    recipe: str,
    where: str,
    ranges: Preparation | ActivationRanges | None = None,
    **changes: Any,
) -> tuple[ir.Model, QuantizationReport]:
    goal = target(where)
    model = build_decoder(GraphSpec(checkpoint.config, goal.dialect, goal.activation, 64), checkpoint.tensors)
    return model, quantize(model, load_recipe(recipe).model_copy(update=changes), goal, ranges)


def optimized(path: Path) -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(path.with_name("optimized.onnx"))


@pytest.mark.parametrize("head", ["int4", "int8"])
def test_on_the_cpu_every_linear_becomes_the_fused_kernel(head: str, tiny: Checkpoint, tmp_path: Path) -> None:
    model, report = make(tiny, "int4-rtn", "cpu", head=head)
    save_model(model, tmp_path / "model.onnx")
    nodes = optimized(tmp_path / "model.onnx").graph.node
    fused = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert len(fused) == len(linear_names(tiny.config.layers))
    assert not [node for node in nodes if node.op_type in ("MatMul", "DequantizeLinear")]
    facts = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in fused]
    assert all(fact["accuracy_level"] == 4 and fact["block_size"] == 32 for fact in facts)
    assert Counter(fact["bits"] for fact in facts) == ({4: 9} if head == "int4" else {4: 8, 8: 1})
    assert report.block_size == 32


def test_on_the_cpu_int8_linears_become_integer_gemms(
    tiny: Checkpoint, ranges: ActivationRanges, tmp_path: Path
) -> None:
    model, report = make(tiny, "int8-sq", "cpu", ranges)
    save_model(model, tmp_path / "model.onnx")
    kinds = Counter(node.op_type for node in optimized(tmp_path / "model.onnx").graph.node)
    assert kinds["MatMulIntegerToFloat"] == 8
    assert kinds["MatMul"] == 1  # the head
    assert kinds["DequantizeLinear"] == 0
    assert report.forms["head"] == "fp32"


def test_int4_for_tensorrt_has_the_form_that_is_fused_there(tiny: Checkpoint) -> None:
    model, report = make(tiny, "int4-rtn", "sm86")
    assert report.block_size == 64
    dequantizers = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert len(dequantizers) == 9
    for node in dequantizers:
        codes, scale = node.inputs  # and no zero point
        assert codes is not None and scale is not None
        assert codes.dtype == ir.DataType.INT4
        assert scale.dtype == ir.DataType.FLOAT16
        assert node.attributes["axis"].as_int() == 0
        assert node.attributes["block_size"].as_int() == 64


@pytest.mark.parametrize(
    ("recipe", "where"),
    [
        ("int4-rtn", "cpu"),
        ("int4-rtn", "cuda"),
        ("int4-rtn", "sm80"),
        ("int8-sq", "sm80"),
        ("fp8", "sm120"),
        ("nvfp4", "sm120"),
    ],
)
def test_the_saved_graph_is_valid_onnx(
    recipe: str, where: str, tiny: Checkpoint, ranges: ActivationRanges, tmp_path: Path
) -> None:
    model, _ = make(tiny, recipe, where, ranges)
    save_model(model, tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"))


def test_weights_are_read_while_saving_and_only_once(tiny: Checkpoint, tmp_path: Path) -> None:
    reads: Counter[str] = Counter()

    def counting(name: str) -> Any:
        def load() -> Any:
            reads[name] += 1
            return tiny.tensors[name].load()

        return load

    watched = {name: replace(tensor, load=counting(name)) for name, tensor in tiny.tensors.items()}
    model, _ = make(replace(tiny, tensors=watched), "int4-rtn", "cpu")
    assert not reads
    save_model(model, tmp_path / "model.onnx")
    assert {name for name, count in reads.items() if count > 1} == set()
    assert set(reads) == set(tiny.tensors)


def test_two_builds_give_the_same_bytes(tiny: Checkpoint, ranges: ActivationRanges, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_model(make(tiny, "int4-rtn", "sm80", ranges)[0], tmp_path / name / "model.onnx")
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_full_precision_leaves_the_graph_as_it_was(tiny: Checkpoint) -> None:
    model, report = make(tiny, "fp32", "cpu")
    assert set(report.forms.values()) == {"fp32"}
    assert not [node for node in model.graph if node.op_type == "DequantizeLinear"]


def test_a_matrix_that_no_block_divides_is_named(tiny: Checkpoint) -> None:
    goal = replace(target("cpu"), block_sizes=(128, 96))
    model = build_decoder(GraphSpec(tiny.config, "ort", "fp32", 64), tiny.tensors)
    with pytest.raises(QuantizationError, match=r"layers\.0\.qkv \(K = 64\)"):
        quantize(model, load_recipe("int4-rtn"), goal)


@pytest.mark.parametrize("recipe", ["fp8", "int8-sq", "nvfp4", "int4-awq"])
def test_a_recipe_with_calibration_is_refused_without_one(recipe: str, tiny: Checkpoint) -> None:
    with pytest.raises(QuantizationError, match=f"recipe {recipe} needs a calibration"):
        make(tiny, recipe, "sm120")


def keeping(ranges: ActivationRanges, *names: str) -> Preparation:
    kept = dict.fromkeys(names, "a massive activation")
    return Preparation({}, ranges.largest, ranges.power, kept, ranges.chats, ranges.tokens)


def test_a_kept_linear_stays_as_it_was_and_is_reported(tiny: Checkpoint, ranges: ActivationRanges) -> None:
    model, report = make(tiny, "int8-sq", "sm86", keeping(ranges, "layers.1.down"))
    assert report.kept == {"layers.1.down": "a massive activation"}
    assert report.forms["layers.1.down"] == "fp16"
    assert Counter(report.forms.values()) == {"int8": 7, "fp16": 2}
    (down,) = (node for node in model.graph if node.metadata_props.get("linear") == "layers.1.down")
    assert not [v for v in down.inputs if v is None or getattr(v.producer(), "op_type", "") == "DequantizeLinear"]


def test_too_much_kept_is_no_recipe(tiny: Checkpoint, ranges: ActivationRanges) -> None:
    with pytest.raises(QuantizationError, match=r"3 of 8 linears would stay unquantized, over 25%.*layers\.0\.qkv"):
        make(tiny, "int8-sq", "sm86", keeping(ranges, "layers.0.qkv", "layers.0.o", "layers.0.down"))
    with pytest.raises(QuantizationError, match=r"keeps layers\.7\.o, which is no linear"):
        make(tiny, "int8-sq", "sm86", keeping(ranges, "layers.7.o"))


def test_a_block_size_that_does_not_divide_is_refused_with_those_that_do(tiny: Checkpoint) -> None:
    with pytest.raises(QuantizationError, match=r"128 does not divide.*qkv \(K = 64\).*Sizes that do: 64, 32"):
        make(tiny, "int4-rtn", "sm86", block_size=128)
    assert make(tiny, "int4-rtn", "sm86", block_size=32)[1].block_size == 32


def test_a_recipe_that_the_target_cannot_take_is_refused(tiny: Checkpoint) -> None:
    with pytest.raises(TargetError, match="no fp8 kernels"):
        make(tiny, "fp8", "cpu")


def test_a_graph_is_not_quantized_twice(tiny: Checkpoint) -> None:
    model, _ = make(tiny, "int4-rtn", "cpu")
    with pytest.raises(QuantizationError, match="quantized before"):
        quantize(model, load_recipe("int4-rtn"), target("cpu"))


def test_a_graph_of_another_activation_is_refused(tiny: Checkpoint) -> None:
    model = build_decoder(GraphSpec(tiny.config, "portable", "fp32", 64), tiny.tensors)
    with pytest.raises(QuantizationError, match='activation "fp16"'):
        quantize(model, load_recipe("int4-rtn"), target("sm80"))


def test_a_head_that_is_also_the_embedding_is_not_quantized_behind_its_back(tmp_path: Path) -> None:
    from hermes_deploy.checkpoints import open_checkpoint
    from tests.fixtures.tiny import make_mistral

    tied = open_checkpoint(str(make_mistral(tmp_path / "tied", tie_word_embeddings=True)))
    model = build_decoder(GraphSpec(tied.config, "ort", "fp32", 64, embedding="tied"), tied.tensors)
    with pytest.raises(QuantizationError, match="embedding"):
        quantize(model, load_recipe("int4-rtn"), target("cpu"))
