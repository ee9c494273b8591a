"""Tiny checkpoints, made once and copied where a test damages them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.tiny_gguf import write_tiny_gguf
from tests.fixtures.tiny import make_mistral

Edit = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mistral(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def sharded_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mistral(tmp_path_factory.mktemp("sharded") / "model", dtype="bfloat16", shards=3)


@pytest.fixture(scope="session")
def gguf_source(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tiny_source, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def tiny(tiny_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_source, tmp_path / "tiny"))


@pytest.fixture
def sharded(sharded_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded_source, tmp_path / "sharded"))


@pytest.fixture
def gguf_file(gguf_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(gguf_source, tmp_path / "tiny.gguf"))


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys; a value of `...` removes the key."""
    data = json.loads(path.read_bytes()) if path.exists() else {}
    data |= changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}), encoding="utf-8")
