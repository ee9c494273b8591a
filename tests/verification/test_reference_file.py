"""A reference that a cache keeps: same bytes, and only for what it was made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import GateError
from hermes_deploy.verification import Reference, Texts, heldout_texts, read_reference, reference_key, write_reference


@pytest.fixture
def texts(tiny: Checkpoint) -> Texts:
    return heldout_texts(ChatTokenizer(tiny.tokenizer), 1000)


@pytest.fixture
def stored(reference: Reference, tiny: Checkpoint, tmp_path: Path) -> Path:
    path = tmp_path / "reference.npz"
    write_reference(reference, tiny, path)
    return path


def test_what_is_read_back_is_what_was_written(
    reference: Reference, tiny: Checkpoint, texts: Texts, stored: Path
) -> None:
    read = read_reference(stored, tiny, texts)
    assert np.array_equal(read.hidden, reference.hidden)
    assert (read.texts, read.text, read.answers.tokens) == (reference.texts, reference.text, reference.answers.tokens)
    assert np.array_equal(read.answers.hidden, reference.answers.hidden)
    assert read.config == tiny.config and read.parameters == reference.parameters


def test_the_same_reference_has_the_same_bytes(
    reference: Reference, tiny: Checkpoint, stored: Path, tmp_path: Path
) -> None:
    write_reference(reference, tiny, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == stored.read_bytes()


def test_another_checkpoint_or_other_texts_are_refused(tiny: Checkpoint, texts: Texts, stored: Path) -> None:
    with pytest.raises(GateError, match="differs in: checkpoint"):
        read_reference(stored, replace(tiny, sha256="0" * 64), texts)
    other = replace(texts, sequences=((1, 2, 3), *texts.sequences[1:]))
    with pytest.raises(GateError, match="differs in: texts"):
        read_reference(stored, tiny, other)


def test_a_damaged_file_is_refused(tiny: Checkpoint, texts: Texts, stored: Path) -> None:
    content = bytearray(stored.read_bytes())
    stored.write_bytes(content[: len(content) // 2])
    with pytest.raises(GateError, match="delete it and build again"):
        read_reference(stored, tiny, texts)
    content[len(content) // 2] ^= 0xFF
    stored.write_bytes(content)
    with pytest.raises(GateError, match="delete it and build again"):
        read_reference(stored, tiny, texts)


def test_a_pickle_in_its_place_is_not_opened(tiny: Checkpoint, texts: Texts, tmp_path: Path) -> None:
    path = tmp_path / "evil.npz"
    np.savez(path, key=np.array([{"a": 1}], dtype=object))
    with pytest.raises(GateError, match="cannot be read"):
        read_reference(path, tiny, texts)


def test_the_key_changes_with_everything_that_a_reference_depends_on(tiny: Checkpoint, texts: Texts) -> None:
    keys = [
        reference_key(tiny, texts),
        reference_key(replace(tiny, sha256="0" * 64), texts),
        reference_key(tiny, replace(texts, prompts=())),
        reference_key(tiny, replace(texts, sequences=texts.sequences[:-1])),
    ]
    assert len({tuple(sorted(key.items())) for key in keys}) == 4
