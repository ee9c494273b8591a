"""What a build writes beside the engine is what serving reads back."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hermes_deploy.chat import ChatTokenizer, read_folder, write_folder
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import ArtifactError

CHAT = [{"role": "user", "content": "Où ? 東京 😀"}]


def test_the_folder_gives_back_the_same_files(demo: Checkpoint, tmp_path: Path) -> None:
    # Line ends and a missing token must survive as they are.
    files = replace(demo.tokenizer, bos_token=None, chat_template=demo.tokenizer.chat_template + "\r\n{# é #}\n")
    write_folder(files, tmp_path / "tokenizer")
    assert read_folder(tmp_path / "tokenizer") == files


def test_a_served_tokenizer_gives_the_ids_of_the_built_one(
    demo: Checkpoint, smollm2: ChatTokenizer, tmp_path: Path
) -> None:
    write_folder(demo.tokenizer, tmp_path)
    served = ChatTokenizer.from_folder(tmp_path)
    assert served.encode_chat(CHAT) == smollm2.encode_chat(CHAT)
    assert served.stop_ids == smollm2.stop_ids == (0, 2)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "tokens.json"])
def test_a_folder_without_one_of_the_files_is_an_artifact_error(demo: Checkpoint, tmp_path: Path, name: str) -> None:
    write_folder(demo.tokenizer, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match="build the artifact again"):
        ChatTokenizer.from_folder(tmp_path)


def test_chat_needs_neither_numpy_nor_any_engine() -> None:
    code = (
        "import sys, hermes_deploy.chat;"
        "bad = {'numpy', 'torch', 'transformers', 'onnxruntime', 'gguf', 'ml_dtypes', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
