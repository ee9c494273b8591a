"""A `RawPrompt` goes over the wire as the input `prompt`, letter by letter, and nothing is put around it."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from hermes_deploy.client import Client, InvalidRequest, Message, RawPrompt
from tests.client.fake_triton import FakeTriton, inputs_of

TEXT = "<s>[INST] Où ? 🙂\n [/INST]"


@pytest.mark.parametrize(("door", "model"), [("chat", "hermes_engine"), ("ensemble", "hermes")])
def test_it_is_sent_as_it_is_and_no_messages_with_it(triton: FakeTriton, client: Client, door: Any, model: str) -> None:
    assert client.ask(RawPrompt(TEXT), door=door, max_tokens=3).text == "Paris."
    (request,) = triton.requests
    inputs = inputs_of(request)
    data = TEXT.encode()
    assert request.model_name == model
    assert inputs["prompt"] == ("BYTES", [1], struct.pack("<I", len(data)) + data)
    assert inputs["max_tokens"] == ("INT32", [1], struct.pack("<i", 3))
    assert "messages" not in inputs


def test_the_same_text_without_it_is_a_message(triton: FakeTriton, client: Client) -> None:
    client.ask(TEXT)
    assert "prompt" not in inputs_of(triton.requests[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RawPrompt(""), "the raw prompt is empty; give the whole rendered prompt"),
        (lambda: RawPrompt("a\ud800"), "the raw prompt .*which UTF-8 cannot carry"),
        (lambda: RawPrompt(b"bytes"), "the raw prompt"),
        (lambda: RawPrompt([Message("user", "hi")]), "the raw prompt"),
    ],
)
def test_what_is_no_text_cannot_be_one(make: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make()


def test_a_system_message_has_no_place_beside_it(triton: FakeTriton, client: Client) -> None:
    with pytest.raises(InvalidRequest, match="system= was given with a RawPrompt"):
        client.ask(RawPrompt(TEXT), system="Be brief.")
    assert triton.requests == []


def test_one_that_cannot_be_sent_is_refused_here(triton: FakeTriton, client: Client) -> None:
    with pytest.raises(InvalidRequest, match="can be sent"):
        client.ask(RawPrompt("x" * (16 * 2**20)))
    assert triton.requests == []


def test_what_is_no_prompt_at_all_is_told_the_three_forms(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="takes a text, a list of messages or a RawPrompt"):
        client.ask(7)  # type: ignore[arg-type]
