"""Writes the readable copy of the Triton models: `python -m hermes_deploy.repository.demo model_repository`.

What is checked in under model_repository/ is what the demo's build writes, without tokenizer,
engine and manifest; a test compares the two.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hermes_deploy.families import FAMILIES
from hermes_deploy.recipes import load_recipe
from hermes_deploy.repository.assemble import write_models
from hermes_deploy.repository.engine_config import EngineConfig, EngineTarget, sampling_defaults


def demo_config() -> EngineConfig:
    """The demo model by its default recipe, for the CPU."""
    recipe = load_recipe("int4-awq")
    target = EngineTarget(
        name="cpu",
        engine="onnxruntime",
        precision="int4",
        model="cpu/model.onnx",
        files=("cpu/fused.onnx", "cpu/model.onnx", "cpu/model.onnx.data"),
    )
    return EngineConfig(
        model="smollm2",
        family=FAMILIES["smollm2"].name,
        targets=(target,),
        max_context=recipe.max_context,
        max_slots=recipe.max_slots,
        vocab_size=49152,
        stop_ids=(2, 0),
        sampling=sampling_defaults({}, "smollm2"),
    )


if __name__ == "__main__":
    write_models(Path(sys.argv[1]), demo_config())
