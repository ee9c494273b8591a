"""From TensorRT's own layer record: what the recipe promised is what the engine's kernels do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array

from hermes_deploy.checkpoints.checkpoint import DecoderConfig
from hermes_deploy.engines import build_engine, serving_profiles
from hermes_deploy.errors import EngineError
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.quantization import ActivationRanges, find_linears, quantize
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target
from tests.engines.conftest import ALL, Build
from tests.engines.decoder_onnx import Decoder, Form
from tests.engines.random_weights import random_tensors

TENSORRT_BLOCK_SIZES = sorted({size for name in ALL for size in target(name).block_sizes})
PROFILES = 2


def test_an_fp16_engine_for_four_gpus_fuses_every_attention_in_prefill_and_in_decode(build: Build) -> None:
    layers = build(Decoder("fp16")).sidecar.layers
    assert layers.linears == {"fp16": 9}
    assert layers.gemms == {"fp16": 9 * PROFILES}
    assert layers.attentions == 2
    assert layers.fused_attention == {"gemm_mha_v2": 2, "gemv_mha_v1": 2}


@pytest.mark.parametrize("block_size", TENSORRT_BLOCK_SIZES)
def test_every_int4_block_size_that_targets_ship_becomes_an_int4_gemm_on_all_four_gpus(
    build: Build, block_size: int
) -> None:
    decoder = Decoder("int4", block_size=block_size)
    layers = build(decoder).sidecar.layers
    assert layers.linears == {"fp16": 1, "int4": decoder.quantized_linears}
    assert layers.gemms["int4"] == decoder.quantized_linears * PROFILES
    assert layers.fused_attention == {"gemm_mha_v2": 2, "gemv_mha_v1": 2}


@pytest.mark.parametrize("name", ALL)
def test_int4_gemms_are_there_on_each_gpu_alone(build: Build, name: str) -> None:
    decoder = Decoder("int4", block_size=64)
    sidecar = build(decoder, (name,)).sidecar
    assert sidecar.targets == [name]
    assert sidecar.layers.gemms["int4"] == decoder.quantized_linears * PROFILES


def test_an_fp8_engine_for_two_gpus_multiplies_in_fp8(build: Build) -> None:
    decoder = Decoder("fp8")
    sidecar = build(decoder, ("sm89", "sm120")).sidecar
    assert sidecar.compute_capabilities == ["8.9", "12.0"]
    assert sidecar.layers.gemms["fp8"] == decoder.quantized_linears * PROFILES
    assert sidecar.layers.fused_attention == {"gemm_mha_v2": 2, "gemv_mha_v1": 2}


def test_an_int8_engine_for_four_gpus_multiplies_in_int8(build: Build) -> None:
    decoder = Decoder("int8")
    sidecar = build(decoder).sidecar
    assert sidecar.layers.linears == {"fp16": 1, "int8": decoder.quantized_linears}
    assert sidecar.layers.gemms["int8"] == decoder.quantized_linears * PROFILES
    assert sidecar.layers.fused_attention == {"gemm_mha_v2": 2, "gemv_mha_v1": 2}


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_a_scale_a_column_whose_sums_would_overflow_fails_the_build(build: Build, form: Form) -> None:
    with pytest.raises(EngineError, match=rf"node_qkv_0\] dequantizes its {form} weight with 512 scales.*overflow"):
        build(Decoder(form, scale_a_column=True), ("sm89",))


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_a_gemm_multiplies_with_both_scales_in_fp32_before_it_writes_fp16(
    build: Build, form: Form, tmp_path: Path
) -> None:
    plan = build(Decoder(form, layers=1), ("sm89",)).plan.read_bytes()
    stored = {t.name: to_array(t) for t in onnx.load(tmp_path / "graph" / "model.onnx").graph.initializer}
    for name in ("qkv_0", "o_0", "gate_up_0", "down_0"):
        product = stored[f"{name}_s"].astype(np.float32) * stored[f"{name}_xs"].astype(np.float32)
        assert product.tobytes() in plan, name


def test_kept_linears_stay_in_fp16_and_the_rest_is_proved(build: Build) -> None:
    decoder = Decoder("int8", keeps_down=True)
    kept = ("node_down_0", "node_down_1")
    sidecar = build(decoder, ("sm86",), kept=kept).sidecar
    assert sidecar.kept == sorted(kept)
    assert sidecar.layers.linears == {"fp16": 3, "int8": 6}
    assert sidecar.layers.gemms == {"fp16": 3 * PROFILES, "int8": 6 * PROFILES}


@pytest.mark.parametrize(
    ("decoder", "kept", "says"),
    [
        (Decoder("int8", keeps_down=True), ("node_down_0",), "promises int8 linears, but 1 of 9 are fp16.*down_1"),
        (Decoder("int8"), ("node_down_0",), "node_down_0 was to be kept in fp16, but it is int8"),
        (Decoder("int8"), ("node_nothing",), "node_nothing was to be kept in fp16, but it is not in the graph"),
        (
            Decoder("fp16"),
            tuple(f"node_{part}_{layer}" for part in ("qkv", "o", "gate_up", "down") for layer in (0, 1)),
            "8 of 8 linears are kept in fp16: that is no int8 engine",
        ),
    ],
)
def test_what_is_kept_is_what_was_asked_for_and_no_more(
    build: Build, decoder: Decoder, kept: tuple[str, ...], says: str
) -> None:
    with pytest.raises(EngineError, match=says):
        build(decoder, ("sm86",), "int8-sq", kept)


def test_tensorrt_does_not_take_int4_weights_with_fp8_activations(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this fails, TensorRT has learned it: let targets claim w4a8."""
    monkeypatch.setattr("hermes_deploy.engines.build.check_target", lambda *_: None)
    with pytest.raises(EngineError, match=r"could not build the engine.*is_constant"):
        build(Decoder("w4a8"), ("sm89",))


def test_an_int4_scale_in_fp32_loses_the_fusion_and_fails_the_build(build: Build, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"8 of 8 quantized linears did not become int4 kernels.*node_qkv_0"):
        build(Decoder("int4", fp32_scale=True))
    assert list((tmp_path / "engine").iterdir()) == []


def test_a_graph_that_was_never_quantized_does_not_pass_for_int4(build: Build) -> None:
    with pytest.raises(EngineError, match="promises int4 linears, but 8 of 9 are fp16"):
        build(Decoder("fp16"), recipe="int4-rtn")


def test_a_head_in_another_precision_than_the_recipe_says_fails_the_build(tmp_path: Path) -> None:
    from tests.engines.decoder_onnx import write_decoder

    with pytest.raises(EngineError, match="promises an int4 head, but it is fp16"):
        build_engine(
            write_decoder(tmp_path, Decoder("int4")),
            [target("sm86")],
            tmp_path / "engine",
            recipe=load_recipe("int4-rtn"),
            profiles=serving_profiles(32, 4),
        )


SMALL = DecoderConfig(
    architecture="MistralForCausalLM",
    vocab_size=320,
    hidden_size=192,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=64,
    intermediate_size=384,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position=256,
    sliding_window=32,
)


@pytest.mark.parametrize(
    ("recipe", "targets", "gemms"),
    [
        ("fp16", ALL, {"fp16": 18}),
        ("int4-rtn", ALL, {"int4": 18}),
        ("fp8", ("sm89", "sm120"), {"fp16": 2, "fp8": 16}),
        ("int8-sq", ALL, {"fp16": 2, "int8": 16}),
        ("nvfp4", ("sm120",), {"fp16": 2, "nvfp4": 16}),
    ],
)
def test_what_graphs_and_quantization_emit_becomes_an_engine_with_those_kernels(
    tmp_path: Path, recipe: str, targets: tuple[str, ...], gemms: dict[str, int]
) -> None:
    model = build_decoder(GraphSpec(SMALL, "portable", "fp16", 128), random_tensors(SMALL))
    if recipe != "fp16":
        linears = find_linears(model)
        ranges = ActivationRanges(
            {linear.name: 20.0 for linear in linears},
            {linear.name: np.ones(linear.rows, dtype=np.float32) for linear in linears},
            chats=1,
            tokens=1,
        )
        quantize(model, load_recipe(recipe), target(targets[-1]), ranges)
    save_model(model, tmp_path / "model.onnx")
    files = build_engine(
        tmp_path / "model.onnx",
        [target(name) for name in targets],
        tmp_path / "engine",
        recipe=load_recipe(recipe),
        profiles=serving_profiles(32, 4),
    )
    assert files.sidecar.layers.gemms == gemms
    assert files.sidecar.layers.fused_attention == {"gemm_mha_v2": 2, "gemv_mha_v1": 2}
    assert len(files.sidecar.aliases) == 2 * SMALL.layers


def test_an_fp16_engine_holds_every_weight_once(tmp_path: Path) -> None:
    def built(name: str, config: DecoderConfig) -> tuple[int, int]:
        """Bytes of the weights and of the engine."""
        save_model(
            build_decoder(GraphSpec(config, "portable", "fp16", 128), random_tensors(config)), tmp_path / f"{name}.onnx"
        )
        files = build_engine(
            tmp_path / f"{name}.onnx",
            [target("sm86")],
            tmp_path / name,
            recipe=load_recipe("fp16"),
            profiles=serving_profiles(32, 4),
        )
        return (tmp_path / f"{name}.onnx.data").stat().st_size, files.sidecar.plan.size

    # the kernels take more room than tiny weights do, and the same room in both engines
    small, large = (
        built(f"heads_{n}", replace(SMALL, heads=n, kv_heads=n, intermediate_size=192 * n)) for n in (4, 24)
    )
    assert large[1] - small[1] < 1.1 * (large[0] - small[0])
