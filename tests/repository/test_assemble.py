"""A repository has everything a server needs and nothing that it would take for a fifth model."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermes_deploy.checkpoints.tokenizer_files import TokenizerFiles
from hermes_deploy.errors import BuildError
from hermes_deploy.protocol.tensors import MODELS
from hermes_deploy.repository.assemble import assemble
from hermes_deploy.repository.demo import demo_config
from tests.fixtures.tiny import CHATML, byte_tokenizer_json

TOKENIZER = TokenizerFiles(byte_tokenizer_json().encode(), CHATML, None, "<|im_end|>", (258,))


@pytest.fixture
def engine_files(tmp_path: Path) -> dict[str, Path]:
    sources = {}
    for name in demo_config().targets[0].files:
        sources[name] = tmp_path / name.replace("/", "-")
        sources[name].write_bytes(name.encode())
    return sources


def build(root: Path, engine_files: dict[str, Path]) -> None:
    root.mkdir(exist_ok=True)
    assemble(
        root, demo_config(), TOKENIZER, engine_files, license_text="Apache", citation="@misc{}", model_card="# Card"
    )


def test_the_folders_are_the_four_models_and_papers_are_files(tmp_path: Path, engine_files: dict[str, Path]) -> None:
    root = tmp_path / "root"
    build(root, engine_files)
    assert {p.name for p in root.iterdir() if p.is_dir()} == set(MODELS)
    assert (root / "MODEL_LICENSE").read_text() == "Apache"
    assert (root / "MODEL_CITATION").read_text() == "@misc{}"
    for model in MODELS:
        # git and object stores lose empty folders, and Triton needs every version folder
        assert any((root / model / "1").iterdir())
    assert (root / "hermes_engine/1/cpu/model.onnx.data").read_bytes() == b"cpu/model.onnx.data"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, engine_files: dict[str, Path]) -> None:
    for name in ("one", "two"):
        build(tmp_path / name, engine_files)
    one, two = (
        {str(p.relative_to(r)): p.read_bytes() for p in r.rglob("*") if p.is_file()}
        for r in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two


def test_an_engine_file_that_is_in_its_place_is_left_there(tmp_path: Path, engine_files: dict[str, Path]) -> None:
    root = tmp_path / "root"
    place = root / "hermes_engine/1/cpu/model.onnx"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"made here")
    build(root, {**engine_files, "cpu/model.onnx": place})
    assert place.read_bytes() == b"made here"


def test_engine_files_that_nobody_named_are_refused(tmp_path: Path, engine_files: dict[str, Path]) -> None:
    engine_files["cpu/extra"] = engine_files.pop("cpu/model.onnx")
    with pytest.raises(BuildError, match=r"missing \['cpu/model.onnx'\], not named \['cpu/extra'\]"):
        build(tmp_path / "root", engine_files)
