"""sha256 over the source bytes of a checkpoint: every file is read once, files side by side."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hermes_deploy.errors import CheckpointError

_BLOB = re.compile(r"[0-9a-f]{64}")


def sha256_file(path: Path) -> str:
    """Hex digest of one file. Raises CheckpointError when it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def sha256_files(files: Iterable[tuple[str, Path]]) -> str:
    """One digest of (name, path) pairs, independent of their order and of where they lie.

    A file of the Hugging Face hub's cache whose name is its own sha256 is checked against it on the
    way, which finds damaged weights that no other check can see.
    """
    named = sorted(files)
    # hashlib lets go of the interpreter lock, so shards are hashed on all cores.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_checked_digest, (path for _, path in named)))
    lines = "".join(f"{digest}  {name}\n" for (name, _), digest in zip(named, digests, strict=True))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def _checked_digest(path: Path) -> str:
    digest = sha256_file(path)
    if path.is_symlink():
        blob = path.resolve()
        if blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name) and blob.name != digest:
            raise CheckpointError(
                f"{path} is damaged: its sha256 is {digest}, the hub's is {blob.name}. "
                f"Delete {blob} and run again; it will be downloaded anew."
            )
    return digest
