"""Every way in which a model comes in -> one `Checkpoint`. Never unpickles; needs neither torch nor transformers.

Importing this package costs nothing: readers are imported when a checkpoint is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hermes_deploy.checkpoints.checkpoint import Checkpoint

__all__ = ["apply_adapter", "open_checkpoint"]


def open_checkpoint(model: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Checkpoint:
    """Opens `model`: `smollm2` (the demo), a local folder, a `.gguf` file, or a hub id `org/name`.

    A local path wins over a hub id of the same spelling. `revision` is a branch, tag or commit and is
    for hub ids only. `cache_dir` holds downloads; default `$HERMES_DEPLOY_CACHE`, else
    `$XDG_CACHE_HOME/hermes-deploy`, else `~/.cache/hermes-deploy` (hub snapshots: the hub's own cache).
    Weights are checked for shape now and read when asked for. Raises CheckpointError.
    """
    from hermes_deploy.checkpoints.source import open_source

    return open_source(model, revision=revision, cache_dir=cache_dir)


def apply_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Merges the PEFT LoRA in `folder` (adapter_config.json, adapter_model.safetensors) into `checkpoint`.

    Tensor by tensor and only when a tensor is loaded: changed ones then give float32, W + scaling * (B @ A).
    `sha256` of the result covers the adapter, `adapter` says what was merged. LoRA, rsLoRA and DoRA of linears
    and the embedding, and whole modules that training saved; all else is refused by name. Raises CheckpointError.
    """
    from hermes_deploy.checkpoints.adapter import merge_adapter

    return merge_adapter(checkpoint, folder)
