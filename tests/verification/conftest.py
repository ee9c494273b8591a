"""A tiny checkpoint, its reference, and a way to build any recipe of it (or of a damaged copy)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.checkpoints.checkpoint import Checkpoint, LazyTensor
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.quantization import ActivationRanges, calibrate, calibration_chats, quantize
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target
from hermes_deploy.verification import Reference, prepare_reference
from tests.fixtures.tiny import make_mistral

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return open_checkpoint(str(make_mistral(folder, hidden_size=128, head_dim=32, initializer_range=0.05)))


@pytest.fixture(scope="session")
def reference(tiny: Checkpoint) -> Reference:
    return prepare_reference(tiny, ChatTokenizer(tiny.tokenizer), positions=1000)


@pytest.fixture(scope="session")
def ranges(tiny: Checkpoint) -> ActivationRanges:
    tokenizer = ChatTokenizer(tiny.tokenizer)
    return calibrate(tiny.config, tiny.tensors, [tokenizer.encode_chat(chat)[:128] for chat in calibration_chats(4)])


@pytest.fixture
def build(tiny: Checkpoint, ranges: ActivationRanges, tmp_path: Path) -> Build:
    def make(recipe: str, where: str, tensors: Mapping[str, LazyTensor] = tiny.tensors, max_context: int = 192) -> Path:
        goal = target(where)
        model = build_decoder(GraphSpec(tiny.config, goal.dialect, goal.activation, max_context), tensors)
        quantize(model, load_recipe(recipe), goal, ranges)
        path = tmp_path / f"{recipe}-{where}.onnx"
        save_model(model, path)
        return path

    return make
