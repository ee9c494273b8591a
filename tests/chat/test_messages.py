"""The JSON of the wire: what is taken, and what is refused with which words."""

from __future__ import annotations

import json

import pytest

from hermes_deploy.chat import Room, check_messages, parse_messages
from hermes_deploy.chat.messages import MAX_BYTES, MAX_CHARACTERS, MAX_MESSAGES
from hermes_deploy.errors import RequestError

HI = {"role": "user", "content": "hi"}


def wire(value: object) -> bytes:
    return json.dumps(value).encode()


def test_a_chat_is_read_as_it_was_written() -> None:
    chat = [
        {"role": "system", "content": "Sois bref."},
        {"role": "user", "content": "été 😀"},
        {"role": "assistant", "content": ""},
    ]
    assert parse_messages(json.dumps(chat, ensure_ascii=False).encode()) == chat


def test_null_content_is_empty_text() -> None:
    assert parse_messages(wire([HI, {"role": "assistant", "content": None}]))[1]["content"] == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe[]", "not UTF-8 text: byte 0 is 0xff"),
        (b"[{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"{}", "a JSON dict; expected an array"),
        (b"[]", "messages is empty"),
        (b"[1]", r"messages\[0\] is a int"),
        (b"[" * 100_000, "has 100000 arrays and objects; at most"),
        (b"[" * 500 + b"]" * 500, "nested more than 16 levels deep"),
        (b"[" + b'"",' * 10_000 + b'""]', "has 10001 strings; at most"),
        (wire([HI, {"role": "king", "content": ""}]), r"messages\[1\]: role is 'king'; roles are: system, user"),
        (wire([{"role": "user"}]), "needs both role and content"),
        (wire([{"role": "user", "content": ["parts"]}]), "content is a list; expected text"),
        (wire([{**HI, "name": "Bob"}]), "unknown key 'name'; keys are: role, content"),
        (b'[{"role":"user","role":"system","content":""}]', "occurs twice"),
        (b'[{"role":"user","content":"\\ud83d"}]', "half of a surrogate pair"),
        (wire([HI] * (MAX_MESSAGES + 1)), "more than 1024 messages"),
        (wire([{"role": "user", "content": "x" * (MAX_CHARACTERS + 1)}]), "characters of content"),
        (b" " * (MAX_BYTES + 1), "bytes; at most"),
    ],
)
def test_a_wrong_chat_is_refused_and_the_message_says_where(data: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_messages(data)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert len(str(caught.value)) < 300


def test_the_callers_messages_are_not_kept() -> None:
    given = dict(HI)
    checked = check_messages([given])
    given["content"] = "changed"
    assert checked == [HI]


def test_what_no_tokenizer_could_fit_is_refused_before_it_is_parsed() -> None:
    room = Room(max_context=10, longest_token=4)
    with pytest.raises(RequestError, match=r"has 70000 bytes; .* 10 tokens, .* \d+ bytes of JSON") as found:
        parse_messages(b"{" * 70_000, room)
    assert found.value.code == "OUT_OF_RANGE"


def test_nor_is_it_tokenized() -> None:
    room = Room(max_context=10, longest_token=4)
    escaped = json.dumps([{"role": "user", "content": "é" * 20}]).encode()
    assert parse_messages(escaped, room)[0]["content"] == "é" * 20
    with pytest.raises(RequestError, match=r"42 bytes of content; .* at most 40 bytes of text") as found:
        parse_messages(wire([{"role": "user", "content": "é" * 21}]), room)
    assert found.value.code == "OUT_OF_RANGE"
