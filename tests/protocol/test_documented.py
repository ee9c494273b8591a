"""docs/requests.md says of every tensor what the table says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE, MODELS, Tensor

DOCUMENT = Path(__file__).parents[2] / "docs" / "requests.md"


def row(tensor: Tensor, *, star: bool = False) -> str:
    """The tensor's line in the document."""
    meaning = tensor.meaning.replace("|", "\\|")
    return f"| `{tensor.name}`{'*' if star else ''} | {tensor.dtype} {list(tensor.dims)} | {meaning} |"


INPUTS = dict.fromkeys((*MODELS[ENGINE].inputs, *MODELS[ENSEMBLE].inputs))
OUTPUTS = dict.fromkeys((*MODELS[ENGINE].outputs, *MODELS[ENSEMBLE].outputs))


@pytest.mark.parametrize(
    "line",
    [*(row(t) for t in INPUTS), *(row(t, star=t.optional) for t in OUTPUTS)],
    ids=lambda line: line.split("`")[1],
)
def test_a_tensor_stands_in_the_document_as_in_the_table(line: str) -> None:
    assert line in DOCUMENT.read_text(encoding="utf-8").splitlines()


def test_the_document_has_no_other_tensors() -> None:
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {line.split("`")[1] for line in lines if re.match(r"[A-Z0-9]+ \[", line.split(" | ")[1])}
    assert named == {tensor.name for tensor in (*INPUTS, *OUTPUTS)}
