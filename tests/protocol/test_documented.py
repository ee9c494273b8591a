"""docs/requests.md says of every tensor what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermes_deploy.protocol.tensors import BY_KEY, INPUT_IDS, LEASE, MESSAGES, PIECE, SAMPLING, Tensor

DOCUMENT = Path(__file__).parents[2] / "docs" / "requests.md"


def row(tensor: Tensor, *, star: bool = False) -> str:
    """The tensor's line in the document."""
    meaning = tensor.meaning.replace("|", "\\|")
    return f"| `{tensor.name}`{'*' if star else ''} | {tensor.dtype} {list(tensor.dims)} | {meaning} |"


@pytest.mark.parametrize(
    "line",
    [*(row(t) for t in (MESSAGES, INPUT_IDS, *SAMPLING, *LEASE, *BY_KEY)), *(row(t, star=t.optional) for t in PIECE)],
    ids=lambda line: line.split("`")[1],
)
def test_a_tensor_stands_in_the_document_as_in_the_table(line: str) -> None:
    assert line in DOCUMENT.read_text(encoding="utf-8").splitlines()
