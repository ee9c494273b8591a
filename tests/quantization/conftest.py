"""A tiny checkpoint for the whole folder, and its calibration."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.quantization import ActivationRanges, calibrate, calibration_chats
from tests.fixtures.tiny import make_mistral


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder: Path = make_mistral(tmp_path_factory.mktemp("tiny") / "model")
    return open_checkpoint(str(folder))


@pytest.fixture(scope="session")
def ranges(tiny: Checkpoint) -> ActivationRanges:
    tokenizer = ChatTokenizer(tiny.tokenizer)
    return calibrate(tiny.config, tiny.tensors, [tokenizer.encode_chat(chat)[:128] for chat in calibration_chats(3)])
