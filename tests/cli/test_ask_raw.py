"""`hermes-deploy ask --raw`: the text is the whole prompt."""

from __future__ import annotations

import pytest

from tests.cli.test_ask import run
from tests.cli.test_ask import triton as triton
from tests.client.fake_triton import FakeTriton, inputs_of

TEXT = "<|im_start|>user\nOù ?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("given", ["argument", "standard input"])
def test_it_is_sent_letter_by_letter(triton: FakeTriton, given: str) -> None:
    result = run(triton, TEXT, "--raw") if given == "argument" else run(triton, "-", "--raw", input=TEXT.encode())
    assert (result.returncode, result.stdout) == (0, b"Paris.\n"), result.stderr
    inputs = inputs_of(triton.requests[0])
    assert inputs["prompt"][2][4:].decode() == TEXT
    assert "messages" not in inputs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("",), b"the raw prompt is empty"), ((TEXT, "--system", "Be brief."), b"--raw")],
)
def test_what_cannot_be_a_whole_prompt_is_one_clear_line(
    triton: FakeTriton, arguments: tuple[str, ...], words: bytes
) -> None:
    result = run(triton, "--raw", *arguments)
    assert result.returncode in (2, 8)
    assert words in result.stderr
    assert result.stderr.count(b"\n") == 1
    assert triton.requests == []
