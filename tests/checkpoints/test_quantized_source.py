"""Weights that are already quantized are refused by the tool that made them, wherever it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.errors import CheckpointError
from tests.checkpoints.conftest import edit_json

INSTEAD = r"give the original fp16/bf16 checkpoint .* or a GGUF"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"quant_method 'awq' \(AWQ\)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quant_method 'gptq' \(GPTQ\)"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"quant_method 'bitsandbytes' \(bitsandbytes\)"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, r"\(compressed-tensors\)"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quant_method 'fp8' \(FP8\)"),
        ({"quantization_config": {"quant_method": "of-tomorrow"}}, r"'of-tomorrow' \(not known here\)"),
        ({"quantization_config": {"load_in_4bit": True}}, r"quantization_config says {'load_in_4bit': True}"),
        ({"quantization_config": "int3"}, "quantization_config says int3"),
        ({"quantization_config": {}}, "quantization_config says {}"),
        ({"compression_config": {"format": "pack-quantized"}}, "compression_config says"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization says {'group_size': 64"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, r"text_config.quantization_config says"),
    ],
)
def test_a_quantized_checkpoint_is_refused_by_its_config(tiny: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(tiny / "config.json", **changes)
    with pytest.raises(CheckpointError, match=f"config.json: .* already quantized: .*{message}.*; {INSTEAD}"):
        open_checkpoint(str(tiny))


def test_a_setting_that_is_null_says_nothing(tiny: Path) -> None:
    edit_json(tiny / "config.json", quantization_config=None)
    assert open_checkpoint(str(tiny)).tensors


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("quantize_config.json", "AutoGPTQ"),
        ("quant_config.json", "AutoAWQ"),
        ("hf_quant_config.json", "NVIDIA ModelOpt"),
    ],
)
def test_a_quantizers_file_beside_the_config_is_enough(tiny: Path, name: str, tool: str) -> None:
    (tiny / name).write_text('{"bits": 4}')
    with pytest.raises(CheckpointError, match=f"already quantized: {name} is what {tool} writes; {INSTEAD}"):
        open_checkpoint(str(tiny))


def test_packed_weights_that_no_config_tells_of_are_refused_by_name(tiny: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.qweight"] = np.zeros((8, 64), np.int32)
    save_file(weights, tiny / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"q_proj.qweight is I32; weights may be: F32, F16, BF16\. .*{INSTEAD}"):
        open_checkpoint(str(tiny))
