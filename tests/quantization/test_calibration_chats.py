"""The chats that calibration runs over: those that ship, and a file that a person brings."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.errors import CheckpointError, QuantizationError, RequestError, UsageError
from hermes_deploy.quantization import (
    Chat,
    calibration_chats,
    chats_sha256,
    encode_chats,
    parse_chats,
    read_calibration_file,
)
from hermes_deploy.quantization.calibration_chats import MAX_LINE_BYTES, MAX_MESSAGES
from tests.fixtures.languages import LANGUAGES, looks_like

HELLO: Chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there!"}]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts},
)
chats = st.lists(messages, min_size=1, max_size=5).filter(lambda chat: any(m["content"].strip() for m in chat))


def shipped() -> list[dict[str, Any]]:
    text = (resources.files("hermes_deploy.quantization") / "chats.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def refusal(data: bytes) -> str:
    with pytest.raises(UsageError) as caught:
        parse_chats(data, "mine.jsonl")
    return str(caught.value)


def test_the_shipped_chats_are_well_formed_and_enough_for_the_recipes() -> None:
    chats = calibration_chats()
    assert 32 <= len(chats) <= 40
    for chat in chats:
        roles = [message["role"] for message in chat if message["role"] != "system"]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
        assert all(message["content"] for message in chat)
    with pytest.raises(QuantizationError, match="ship with the package"):
        calibration_chats(1000)


def test_the_eleven_languages_are_among_the_first_sixteen() -> None:
    assert {line["language"] for line in shipped()[:16]} == LANGUAGES


@pytest.mark.parametrize("line", shipped(), ids=lambda line: f"{line['language']}-{line['kind']}")
def test_a_shipped_chat_is_in_the_language_that_it_names(line: dict[str, Any]) -> None:
    assert looks_like(line["language"], " ".join(m["content"] for m in line["messages"] if m["role"] == "assistant"))


@pytest.mark.parametrize("first", [8, 16])
def test_a_few_of_the_shipped_chats_are_a_mix_already(first: int) -> None:
    lines = shipped()[:first]
    said = "\n".join(message["content"] for line in lines for message in line["messages"])
    assert "```python" in said and "```sql" in said and '{"' in said
    assert len({line["language"] for line in lines}) >= 5
    assert any(len(line["messages"]) >= 6 for line in lines)
    assert any(line["messages"][0]["role"] == "system" for line in lines)


@given(st.lists(chats, min_size=1, max_size=4), st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_a_written_file_reads_back(given: list[Chat], bare: bool, ascii_only: bool, end: str) -> None:
    lines = [json.dumps(chat if bare else {"messages": chat}, ensure_ascii=ascii_only) + end for chat in given]
    assert parse_chats("".join(lines).encode("utf-8"), "mine.jsonl") == given


@given(st.binary(max_size=60))
def test_any_bytes_are_chats_or_a_clear_refusal(data: bytes) -> None:
    try:
        assert parse_chats(data, "mine.jsonl")
    except UsageError as error:
        assert "mine.jsonl" in str(error) and '{"messages"' in str(error)


@given(st.lists(chats, min_size=1, max_size=3), st.lists(chats, min_size=1, max_size=3))
def test_the_hash_is_of_what_the_chats_say(one: list[Chat], other: list[Chat]) -> None:
    again = [[{"content": m["content"], "role": m["role"]} for m in chat] for chat in one]
    assert chats_sha256(one) == chats_sha256(again)
    assert (chats_sha256(one) == chats_sha256(other)) == (one == other)


def test_the_hash_does_not_change_between_versions() -> None:
    assert chats_sha256([HELLO]) == "17ef92f7a1911e22ffbbabe2d3fc3a63eb09f1cfafeffeb444da32be30be3056"


def test_a_file_is_read_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"messages": HELLO, "source": "a ticket"}) + "\n\n", encoding="utf-8-sig")
    assert read_calibration_file(path) == [HELLO]


def test_what_openai_clients_write_beside_tool_calls_is_taken() -> None:
    line = [
        {"role": "user", "content": "Rain?", "name": "ada"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "no", "tool_call_id": "1"},
        {"role": "assistant", "tool_calls": []},
    ]
    expected = [("user", "Rain?"), ("assistant", ""), ("tool", "no"), ("assistant", "")]
    (chat,) = parse_chats(json.dumps(line).encode(), "mine.jsonl")
    assert [(message["role"], message["content"]) for message in chat] == expected


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"messages": [', "not valid JSON"),
        (b'{"messages": [], "messages": []}', "a key occurs twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"role": "user", "content": "caf\xe9"}]', "not UTF-8 text, byte 33 is 0xe9"),
        (b'{"prompt": "a", "completion": "b"}', "no \"messages\" among its keys ['prompt', 'completion']"),
        (b'"Hello"', "found text where a list of messages"),
        (b'{"messages": null}', "found null where a list of messages"),
        (b'["Hello"]', "messages[0] is text; expected an object"),
        (b'[{"from": "human", "value": "Hi"}]', "role is missing"),
        (b'[{"role": "human", "content": "Hi"}]', "role is 'human'; roles are: system, user, assistant, tool"),
        (b'[{"role": ["user"], "content": "Hi"}]', "role is ['user']"),
        (b'[{"role": "user"}]', "messages[0] has no content"),
        (b'[{"role": "user", "content": ["Hi"]}]', "content is a list; expected text"),
        (b'[{"role": "user", "content": true}]', "content is true or false; expected text"),
        (b'[{"role": "user", "content": "\\ud800"}]', "half of a surrogate pair"),
        (b'[{"role": "user", "content": " "}, {"role": "assistant", "content": null}]', "the chat has no text"),
        (b'{"messages": []}', "the chat has no text"),
        (b"[" + b'"",' * MAX_MESSAGES + b'""]', f"it has {MAX_MESSAGES + 1} messages"),
        (b" " * MAX_LINE_BYTES + b"[]", f"at most {MAX_LINE_BYTES} are taken"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_line_is_named_with_what_is_allowed(line: bytes, said: str) -> None:
    message = refusal(json.dumps(HELLO).encode() + b"\n\n" + line + b"\n")
    assert message.startswith("mine.jsonl, line 3: ")
    assert said in message and '{"messages": [{"role": "user"' in message


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"], ids=["empty", "blank", "only a mark"])
def test_a_file_without_chats_is_refused(data: bytes) -> None:
    assert "mine.jsonl holds no chat" in refusal(data)


def test_a_file_with_too_many_chats_or_bytes_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text((json.dumps(HELLO) + "\n") * 4, encoding="utf-8")
    module = sys.modules[parse_chats.__module__]  # its name in the package is the function's
    monkeypatch.setattr(module, "MAX_CHATS", 3)
    with pytest.raises(UsageError, match="more than 3 chats"):
        read_calibration_file(path)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    with pytest.raises(UsageError, match="more than 0 MiB"):
        read_calibration_file(path)


def test_a_path_that_is_no_readable_file_is_refused_and_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist; calibration takes a JSONL file") as caught:
        read_calibration_file(tmp_path / "missing.jsonl")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="is a folder"):
        read_calibration_file(tmp_path)


class _UserAndAssistantOnly:
    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        for message in messages:
            if message["role"] not in ("user", "assistant"):
                raise RequestError(f"no {message['role']} messages")
        return [len(message["content"]) for message in messages]


def test_a_system_message_is_left_out_for_a_template_that_refuses_one() -> None:
    chat = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert encode_chats(_UserAndAssistantOnly(), [HELLO, chat]) == [[5, 9], [5, 9]]


def test_a_chat_that_the_template_cannot_render_is_named() -> None:
    chat = [*HELLO, {"role": "tool", "content": "4"}]
    with pytest.raises(CheckpointError, match=r"cannot render chat 2 \(user, assistant, tool\): no tool messages"):
        encode_chats(_UserAndAssistantOnly(), [HELLO, chat])
