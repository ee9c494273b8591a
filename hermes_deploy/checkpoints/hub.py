"""A Hugging Face hub id -> snapshot in the hub's cache -> `Checkpoint`.

Only safetensors, JSON, tokenizer and notice files are asked for: pickles are never downloaded.
`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` mean what they mean to the hub's library.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.checkpoints.folder import open_folder
from hermes_deploy.errors import CheckpointError

_ALLOW = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "README.md",
    "LICENSE*",
    "CITATION*",
]
# Mistral's repositories carry every weight a second time in their own layout; subfolders are other formats.
_IGNORE = ["consolidated*", "*/*"]
# The hub's library lets errors of its HTTP client through; version 1 uses httpx, version 2 httpx2.
_TransportError: type[Exception] = import_module("httpx2" if find_spec("httpx2") else "httpx").HTTPError


def open_hub(repo: str, *, revision: str | None, cache_dir: Path | None) -> Checkpoint:
    """`cache_dir`: where snapshots go (in its `hub` folder); None = the hub's own cache. Raises CheckpointError."""
    at = f"{repo}@{revision}" if revision else repo
    try:
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                cache_dir=cache_dir / "hub" if cache_dir else None,
                allow_patterns=_ALLOW,
                ignore_patterns=_IGNORE,
            )
        )
    except GatedRepoError:
        raise CheckpointError(
            f"{at} is gated: accept its licence on its page, then run: hf auth login (or set HF_TOKEN)"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{repo} has no revision {revision!r}; give a branch, tag or commit of it") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{repo} is neither a local folder nor a repository that the hub shows; "
            "check the spelling, or run: hf auth login, if it is private"
        ) from None
    except HFValidationError as error:
        raise CheckpointError(f"{repo!r} is not a hub id: {error}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, _TransportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{at} could not be fetched and is not whole in the cache: {reason} "
            "Check the network, or give a local folder."
        ) from None
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{at} has no safetensors weights; pickled ones (.bin, .pt) run code when they are opened and are never "
            "downloaded, and a GGUF is used by downloading it and giving the file"
        )
    return open_folder(folder, name=repo, source=f"hub {repo}", revision=folder.name)
