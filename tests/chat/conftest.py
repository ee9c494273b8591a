"""Tokenizers of the real models that come as packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mistral_common
import pytest

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.checkpoints.sentencepiece_file import read_sentencepiece
from hermes_deploy.checkpoints.tekken_file import read_tekken
from hermes_deploy.checkpoints.tokenizer_files import TokenizerFiles
from hermes_deploy.families import FAMILIES

MISTRAL_DATA = Path(mistral_common.__file__).parent / "data"
CHATML = FAMILIES["chatml"].template


def files_of(tokenizer_json: str | bytes, template: str = CHATML, **changes: Any) -> TokenizerFiles:
    data = tokenizer_json.encode() if isinstance(tokenizer_json, str) else tokenizer_json
    return TokenizerFiles(data, template, **{"bos_token": "<s>", "eos_token": "</s>", "stop_ids": (2,), **changes})


@pytest.fixture(scope="session")
def demo() -> Checkpoint:
    return open_checkpoint("smollm2")


@pytest.fixture(scope="session")
def smollm2(demo: Checkpoint) -> ChatTokenizer:
    return ChatTokenizer(demo.tokenizer)


@pytest.fixture(scope="session")
def mistral_v1() -> ChatTokenizer:
    return ChatTokenizer(files_of(json.dumps(read_sentencepiece(MISTRAL_DATA / "tokenizer.model.v1"))))


@pytest.fixture(scope="session")
def tekken() -> ChatTokenizer:
    return ChatTokenizer(files_of(json.dumps(read_tekken(MISTRAL_DATA / "tekken_240718.json"))))
