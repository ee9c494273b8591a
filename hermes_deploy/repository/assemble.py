"""Writes the Triton repository of an artifact into a folder: four models, tokenizer, engines, papers.

    hermes/               config.pbtxt, 1/              the ensemble
    chatml_preprocess/    config.pbtxt, 1/model.py      and the tokenizer's files
    hermes_engine/        config.pbtxt, 1/model.py      and the tokenizer's files, engine_config.json, engines
    chatml_postprocess/   config.pbtxt, 1/model.py
    MODEL_LICENSE, MODEL_CITATION, MODEL_CARD.md        top-level folders are models to Triton, files are not

The build calls this in its staging folder and adds manifest.json last.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from hermes_deploy.chat import write_folder
from hermes_deploy.checkpoints.tokenizer_files import TokenizerFiles
from hermes_deploy.errors import BuildError
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE, MODELS, PREPROCESS
from hermes_deploy.repository.engine_config import EngineConfig, write_engine_config
from hermes_deploy.repository.triton_config import CONFIG, config_texts

LICENSE = "MODEL_LICENSE"
CITATION = "MODEL_CITATION"
MODEL_CARD = "MODEL_CARD.md"

_ABOUT = "about.txt"
_ABOUT_TEXT = "An ensemble has no file of its own, but Triton wants its version folder to be there.\n"


def version_folder(root: Path, model: str) -> Path:
    return root / model / "1"


def assemble(
    root: Path,
    config: EngineConfig,
    tokenizer: TokenizerFiles,
    engine_files: Mapping[str, Path],
    *,
    license_text: str,
    citation: str,
    model_card: str,
) -> None:
    """Writes the whole repository below `root`, which exists.

    `engine_files`: where the bytes of each file of `config.targets` are now, by its path relative
    to hermes_engine/1. A file that is already in its place is left there, any other is copied.
    Raises BuildError when they are not exactly the files that the configuration names.
    """
    named = {name for target in config.targets for name in target.files}
    if named != set(engine_files):
        raise BuildError(
            f"engine files do not match the engine configuration: missing {sorted(named - set(engine_files))}, "
            f"not named {sorted(set(engine_files) - named)}"
        )
    write_models(root, config)
    engine = version_folder(root, ENGINE)
    write_engine_config(engine, config)
    for folder in (engine, version_folder(root, PREPROCESS)):
        write_folder(tokenizer, folder)
    for name, source in engine_files.items():
        _place(source, engine / name)
    (root / LICENSE).write_text(license_text, encoding="utf-8")
    (root / CITATION).write_text(citation, encoding="utf-8")
    (root / MODEL_CARD).write_text(model_card, encoding="utf-8")


def write_models(root: Path, config: EngineConfig) -> None:
    """The part that is the same for every checkpoint: config.pbtxt and model.py of the four models."""
    for name, text in config_texts(config).items():
        version = version_folder(root, name)
        version.mkdir(parents=True, exist_ok=True)
        (root / name / CONFIG).write_text(text, encoding="utf-8")
        if name == ENSEMBLE:
            (version / _ABOUT).write_text(_ABOUT_TEXT, encoding="utf-8")
        else:
            (version / "model.py").write_bytes(shim(name))


def shim(model: str) -> bytes:
    """model.py of a Python model. They lie in the package: an installed wheel has them too."""
    if model not in MODELS or model == ENSEMBLE:
        raise ValueError(f"{model} has no model.py")
    return (resources.files("hermes_deploy.repository.shims") / f"{model}.py").read_bytes()


def _place(source: Path, place: Path) -> None:
    if source.resolve() == place.resolve():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)
