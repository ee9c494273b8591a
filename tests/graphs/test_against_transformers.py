"""Both dialects say what transformers says, at every position, however the text is cut and batched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermes_deploy.graphs import GraphSpec
from tests.graphs.driver import GraphDriver, drive
from tests.graphs.reference import Reference, make_reference

TOLERANCE = 2e-4
CONTEXT = 64

SHAPES: dict[str, dict[str, Any]] = {
    "two-heads-share-a-cache": {},
    "every-head-has-its-cache": {"num_key_value_heads": 4},
    "four-heads-share-a-cache-and-theta-1e6": {"num_key_value_heads": 1, "rope_theta": 1e6},
    "head-dim-is-not-hidden-by-heads": {"head_dim": 32, "num_attention_heads": 6, "num_key_value_heads": 3},
    "tied-head": {"tie_word_embeddings": True},
    "window-shorter-than-the-text": {"sliding_window": 7},
    "window-of-one-token": {"sliding_window": 1},
    "one-layer": {"num_hidden_layers": 1},
}


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference(tmp_path_factory.mktemp("checkpoint"), **SHAPES[request.param])


@pytest.fixture(scope="module")
def folder(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    del reference  # one folder for each
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(params=["portable", "ort"])
def driver(request: pytest.FixtureRequest, reference: Reference, folder: Path) -> GraphDriver:
    return drive(reference, folder, GraphSpec(reference.config, request.param, "fp32", CONTEXT), slots=4)


def text(length: int, rows: int = 1) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(length).integers(0, 320, (rows, length))


def test_a_prompt_gets_the_same_logits_at_every_position(driver: GraphDriver, reference: Reference) -> None:
    tokens = text(40)
    assert np.abs(driver.step(slice(0, 1), tokens, [0]) - reference.logits(tokens)).max() < TOLERANCE


def test_a_prompt_read_in_chunks_gets_the_same_logits(driver: GraphDriver, reference: Reference) -> None:
    tokens = text(CONTEXT)
    expected = reference.logits(tokens)
    for start, end in ((0, 13), (13, 14), (14, 30), (30, CONTEXT)):
        found = driver.step(slice(2, 3), tokens[:, start:end], [start])
        assert np.abs(found - expected[:, start:end]).max() < TOLERANCE


def test_chats_of_different_length_decode_together(driver: GraphDriver, reference: Reference) -> None:
    tokens = text(50, rows=4)
    expected = reference.logits(tokens)
    lengths = np.array([3, 31, 1, 16])
    for row, length in enumerate(lengths):
        driver.step(slice(row, row + 1), tokens[row : row + 1, :length], [0])
    for _ in range(12):
        found = driver.step(slice(0, 4), tokens[np.arange(4), lengths][:, None], list(lengths))
        assert np.abs(found[:, 0] - expected[np.arange(4), lengths]).max() < TOLERANCE
        lengths += 1


def test_only_the_wanted_positions_get_logits_in_the_order_asked(driver: GraphDriver, reference: Reference) -> None:
    tokens = text(20, rows=2)
    wanted = np.array([[19, 4, 4], [0, 18, 19]])
    found = driver.step(slice(0, 2), tokens, [0, 0], wanted)
    expected = np.take_along_axis(reference.logits(tokens), wanted[:, :, None], axis=1)
    assert found.shape == (2, 3, 320)
    assert np.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize("dialect", ["portable", "ort"])
def test_half_precision_ranks_tokens_like_full_precision(dialect: Any, reference: Reference, folder: Path) -> None:
    tokens = text(40)
    found = drive(reference, folder, GraphSpec(reference.config, dialect, "fp16", CONTEXT)).step(
        slice(0, 1), tokens, [0]
    )
    expected = reference.logits(tokens)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.06
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= 0.9
