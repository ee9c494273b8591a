"""A `Reference` as a file: what a cache by content keeps between builds.

Takes a reference, gives an `.npz` of plain arrays (nothing is unpickled), the same bytes for the same
reference; reads it back for a checkpoint and texts, and refuses one that was made of others. The
weights are not in it: they are the checkpoint's.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import GateError
from hermes_deploy.verification.answers import Answers
from hermes_deploy.verification.reference import Reference, Texts, reference_key

_READ_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def write_reference(reference: Reference, checkpoint: Checkpoint, path: Path) -> None:
    """Writes `path`; one that is there is replaced. `checkpoint` is the one that it was made of."""
    key = reference_key(checkpoint, reference.texts)
    with path.open("wb") as stream:
        np.savez(
            stream,
            key=np.asarray(json.dumps(key, sort_keys=True)),
            text=np.asarray(reference.text),
            hidden=reference.hidden,
            **_flat("sequences", reference.sequences),
            **_flat("prompts", reference.answers.prompts),
            **_flat("answers", reference.answers.tokens),
            answer_states=reference.answers.hidden,
        )


def read_reference(path: Path, checkpoint: Checkpoint, texts: Texts) -> Reference:
    """Raises GateError when the file is damaged, or was made of another checkpoint or other texts."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        key = json.loads(str(arrays["key"]))
        read = Reference(
            checkpoint.config,
            checkpoint.tensors,
            _ragged(arrays, "sequences"),
            arrays["hidden"],
            str(arrays["text"]),
            Answers(_ragged(arrays, "prompts"), _ragged(arrays, "answers"), arrays["answer_states"]),
        )
    except _READ_ERRORS as error:
        raise GateError(f"{path} cannot be read as a reference ({error!r}); delete it and build again") from None
    wanted = reference_key(checkpoint, texts)
    other = [name for name in wanted if key.get(name) != wanted[name]]
    shape = (sum(map(len, texts.sequences)), checkpoint.config.hidden_size)
    if other or read.texts != texts or read.hidden.shape != shape:
        raise GateError(
            f"{path} is the reference of something else (differs in: {', '.join(other) or 'its contents'}); "
            f"delete it and build again"
        )
    return read


def _flat(name: str, rows: Sequence[Sequence[int]]) -> dict[str, npt.NDArray[np.int64]]:
    return {
        name: np.asarray([token for row in rows for token in row], dtype=np.int64),
        f"{name}_lengths": np.asarray([len(row) for row in rows], dtype=np.int64),
    }


def _ragged(arrays: dict[str, npt.NDArray[Any]], name: str) -> tuple[tuple[int, ...], ...]:
    flat, ends = arrays[name], np.cumsum(arrays[f"{name}_lengths"])
    if len(flat) != (ends[-1] if len(ends) else 0):
        raise ValueError(f"{name} are cut short")
    return tuple(tuple(piece.tolist()) for piece in np.split(flat, ends)[: len(ends)])
