"""How the token table is stored changes the bytes on disk, not the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermes_deploy.errors import GraphError
from hermes_deploy.graphs import GraphSpec
from tests.graphs.driver import drive
from tests.graphs.reference import make_reference

TOKENS = np.random.default_rng(0).integers(0, 320, (1, 40))


@pytest.mark.parametrize("dialect", ["portable", "ort"])
def test_a_tied_table_is_stored_once_and_gives_the_same_numbers(dialect: Any, tmp_path: Path) -> None:
    reference = make_reference(tmp_path / "checkpoint", tie_word_embeddings=True)
    twice = drive(reference, tmp_path, GraphSpec(reference.config, dialect, "fp32", 64))
    once = drive(reference, tmp_path, GraphSpec(reference.config, dialect, "fp32", 64, "tied"))
    np.testing.assert_array_equal(once.step(slice(0, 1), TOKENS, [0]), twice.step(slice(0, 1), TOKENS, [0]))
    sizes = {kind: (tmp_path / f"{dialect}-fp32-{kind}.onnx.data").stat().st_size for kind in ("tied", "fp32")}
    assert sizes["fp32"] - sizes["tied"] == 320 * 64 * 4


def test_a_half_precision_table_halves_its_bytes_and_hardly_moves_the_logits(tmp_path: Path) -> None:
    reference = make_reference(tmp_path / "checkpoint")
    full = drive(reference, tmp_path, GraphSpec(reference.config, "ort", "fp32", 64))
    half = drive(reference, tmp_path, GraphSpec(reference.config, "ort", "fp32", 64, "fp16"))
    difference = full.step(slice(0, 1), TOKENS, [0]) - half.step(slice(0, 1), TOKENS, [0])
    assert 0 < np.abs(difference).max() < 0.02


def test_a_table_of_a_bfloat16_checkpoint_loses_nothing_in_half_precision(tmp_path: Path) -> None:
    reference = make_reference(tmp_path / "checkpoint", dtype="bfloat16")
    full = drive(reference, tmp_path, GraphSpec(reference.config, "ort", "fp32", 64))
    half = drive(reference, tmp_path, GraphSpec(reference.config, "ort", "fp32", 64, "fp16"))
    np.testing.assert_allclose(
        half.step(slice(0, 1), TOKENS, [0]), full.step(slice(0, 1), TOKENS, [0]), rtol=0, atol=1e-4
    )


def test_a_tied_table_is_refused_where_the_head_is_a_matrix_of_its_own(tmp_path: Path) -> None:
    reference = make_reference(tmp_path / "checkpoint")
    with pytest.raises(GraphError, match="tied"):
        GraphSpec(reference.config, "ort", "fp32", 64, "tied")
