"""Decides what the name of a model means (demo, folder, file, hub id) and opens it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import CheckpointError

DEMO = "smollm2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FORMS = f"a model is: {DEMO} (the demo), a folder in Hugging Face layout, a .gguf file, or a hub id such as org/name"


def open_source(model: str, *, revision: str | None, cache_dir: Path | None) -> Checkpoint:
    path = _local_path(model)
    hub_id = _HUB_ID.fullmatch(model) is not None and not model.endswith(".gguf")
    local = bool(model) and model != DEMO and path.exists()
    if revision is not None and (local or not hub_id):
        raise CheckpointError(
            f"--revision {revision} was given, but {model} is not a hub id; only those have revisions"
        )
    if model == DEMO:
        from hermes_deploy.checkpoints.demo import SMOLLM2, open_carried

        return open_carried(SMOLLM2, cache_dir or default_cache())
    if local and path.is_dir():
        from hermes_deploy.checkpoints.folder import open_folder

        return open_folder(path)
    if local and path.suffix == ".gguf":
        from hermes_deploy.checkpoints.gguf_checkpoint import open_gguf

        return open_gguf(path)
    if local:
        raise CheckpointError(f"{model} is a file, but not a .gguf; {_FORMS}")
    if hub_id:
        from hermes_deploy.checkpoints.hub import open_hub

        return open_hub(model, revision=revision, cache_dir=cache_dir)
    raise CheckpointError(f"{model!r} is not there; {_FORMS}")


def _local_path(model: str) -> Path:
    try:
        path = Path(model).expanduser()
        # its own name becomes the model's, and stands in UTF-8 files
        path.resolve().name.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"the name of {model!a} is not UTF-8 text; rename it") from None
    except RuntimeError:
        raise CheckpointError(f"{model}: there is no home folder (HOME is not set); give the whole path") from None
    return path


def default_cache() -> Path:
    """$HERMES_DEPLOY_CACHE, else $XDG_CACHE_HOME/hermes-deploy, else ~/.cache/hermes-deploy.

    Raises CheckpointError where there is no home.
    """
    chosen = os.environ.get("HERMES_DEPLOY_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "hermes-deploy"
    except RuntimeError:
        raise CheckpointError(
            "there is no home folder to keep downloads in (HOME is not set); name a folder in HERMES_DEPLOY_CACHE"
        ) from None
