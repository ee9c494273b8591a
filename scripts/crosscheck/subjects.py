"""What is compared: a small random Mistral with outlier channels, and our own graphs of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from linears import Form, Matrix, logits, read
from safetensors.numpy import load_file, save_file

from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.quantization import Preparation, prepare, quantize
from hermes_deploy.quantization.equalize import of_values
from hermes_deploy.recipes import Recipe, override
from hermes_deploy.targets import Target
from tests.fixtures.tiny import make_mistral

CONTEXT = 64
CALIBRATION, HELD_OUT = (16, 48), (4, 48)
"""Sequences and their length."""


@dataclass(frozen=True)
class Subject:
    """`ids` [16, 48]: what every tool calibrates on; `held_out` [4, 48]: what logits are compared over."""

    folder: Path
    checkpoint: Checkpoint
    ids: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]

    def logits(self, path: Path) -> npt.NDArray[np.float32]:
        """[4, 48, vocabulary] of an ONNX file of this model, whoever wrote it."""
        return logits(path, self.held_out, self.checkpoint.config)

    @property
    def hugging_face(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def ids_file(self) -> Path:
        return self.folder / "ids.npy"


def make_subject(folder: Path) -> Subject:
    """Two layers of width 256, so that blocks of 128 fit; one input channel in 32 is eight times larger."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32, "num_attention_heads": 8}
    checkpoint = make_mistral(folder / "checkpoint", num_hidden_layers=2, initializer_range=0.03, **sizes)
    weights = load_file(checkpoint / "model.safetensors")
    for name, values in weights.items():
        if "layernorm" in name:
            values[7::32] *= 8.0
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    ids, held_out = (
        np.random.default_rng(seed).integers(0, 320, size) for seed, size in enumerate((CALIBRATION, HELD_OUT))
    )
    np.save(folder / "ids.npy", ids)
    return Subject(folder, open_checkpoint(str(checkpoint)), ids, held_out)


@dataclass(frozen=True)
class Ours:
    """`shipped`: what a build makes for the target, in fp16. `twin`: the same recipe with scales
    and activations in fp32, for numbers that are to be compared with an fp32 graph of somebody else's."""

    shipped: Path
    twin: Path
    preparation: Preparation | None


def our_graphs(subject: Subject, recipe: Recipe, wanted: Target) -> Ours:
    full = replace(wanted, activation="fp32")
    same = override(recipe, {"head": "fp32"}) if recipe.head == "fp16" else recipe
    name = f"ours-{recipe.name}-{wanted.name}"
    shipped, _ = _save(subject, recipe, wanted, subject.folder / f"{name}.onnx")
    twin, preparation = _save(subject, same, full, subject.folder / f"{name}-fp32.onnx")
    return Ours(shipped, twin, preparation)


def our_plain_graph(subject: Subject, dialect: Any, activation: Any) -> Path:
    path = subject.folder / f"ours-{dialect}-{activation}.onnx"
    spec = GraphSpec(subject.checkpoint.config, dialect, activation, CONTEXT)
    save_model(build_decoder(spec, subject.checkpoint.tensors), path)
    return path


def _save(subject: Subject, recipe: Recipe, wanted: Target, path: Path) -> tuple[Path, Preparation | None]:
    config, tensors = subject.checkpoint.config, subject.checkpoint.tensors
    preparation = None
    if recipe.calibration_chats:
        preparation = prepare(config, tensors, subject.ids.tolist(), recipe, wanted)
        tensors = preparation.tensors(config, tensors)
    model = build_decoder(GraphSpec(config, wanted.dialect, wanted.activation, CONTEXT), tensors)
    quantize(model, recipe, wanted, preparation)
    save_model(model, path)
    return path, preparation


def our_linears(subject: Subject, ours: Ours) -> dict[str, tuple[Form | None, Matrix]]:
    """As `linears.read` of the shipped form and the twin's matrices, with what was folded into them taken out."""
    config = subject.checkpoint.config
    forms, matrices = read(ours.shipped, config), read(ours.twin, config)
    scales = {} if ours.preparation is None else ours.preparation.scales
    found = {}
    for name, (_, matrix) in matrices.items():
        layer, _, part = name.rpartition(".")
        joined = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}.get(part, part)
        if (inputs := scales.get(f"{layer}.{joined}")) is not None:
            matrix = matrix / inputs[:, None]
        if part == "v" and (outputs := scales.get(f"{layer}.o")) is not None:
            matrix = matrix * of_values(config, outputs)
        if part == "up" and (outputs := scales.get(f"{layer}.down")) is not None:
            matrix = matrix * outputs
        found[name] = (forms[name][0], matrix)
    return found
