"""The texts that calibration runs over, and how they become token ids.

A file holds one chat a line (JSONL, UTF-8): {"messages": [...]} or the list itself, as OpenAI
clients write it. Some chats ship with the package (`chats.jsonl`, our own writing: several turns,
eleven languages, code). They are rendered with the model's own template. Knows no weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from hermes_deploy.errors import CheckpointError, QuantizationError, RequestError, UsageError

Chat = list[dict[str, str]]
"""Messages with `role` and `content`, oldest first."""

ROLES = ("system", "user", "assistant", "tool")
MAX_FILE_BYTES = 64 << 20
MAX_LINE_BYTES = 1 << 20
MAX_CHATS = 1 << 16
MAX_MESSAGES = 1024
EXAMPLE = '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there!"}]}'


class EncodesChats(Protocol):
    """What is needed of `chat.ChatTokenizer`."""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]: ...


def calibration_chats(count: int | None = None) -> list[Chat]:
    """The first `count` chats that ship with the package (all of them for None).

    Raises QuantizationError when more are asked for than there are.
    """
    chats = parse_chats((resources.files(__package__) / "chats.jsonl").read_bytes(), "chats.jsonl")
    if count is not None and count > len(chats):
        raise QuantizationError(f"{count} calibration chats were asked for; {len(chats)} ship with the package")
    return chats[:count]


def read_calibration_file(path: Path) -> list[Chat]:
    """The chats of a file that a person names. Raises UsageError: what was found, where, what is allowed."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
        raise UsageError(f"{path} {found}; calibration takes a JSONL file with one chat a line, such as\n{EXAMPLE}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    return parse_chats(data, str(path))


def parse_chats(data: bytes, name: str) -> list[Chat]:
    """The chats in `data`, one a line; empty lines are skipped. `name` is what errors call it.

    Of a message only `role` and `content` are taken (null content is empty text, as beside tool
    calls), of a line only `messages`: other keys are notes. Raises UsageError.
    """
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{name} has more than {MAX_FILE_BYTES >> 20} MiB; a few hundred chats calibrate any model")
    chats: list[Chat] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            chats.append(_chat(line))
        except _WrongLine as error:
            raise UsageError(f"{name}, line {number}: {error}. Each line is one chat, such as\n{EXAMPLE}") from None
        if len(chats) > MAX_CHATS:
            raise UsageError(f"{name} has more than {MAX_CHATS} chats; a few hundred calibrate any model")
    if not chats:
        raise UsageError(f"{name} holds no chat. Each line is one chat, such as\n{EXAMPLE}")
    return chats


def chats_sha256(chats: Sequence[Chat]) -> str:
    """Hex digest of what the chats say (roles, texts, order), however their file was laid out."""
    said = [[{"role": message["role"], "content": message["content"]} for message in chat] for chat in chats]
    text = json.dumps(said, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def encode_chats(tokenizer: EncodesChats, chats: Sequence[Chat]) -> list[list[int]]:
    """Token ids of each chat. A system message is left out for a template that refuses one.

    Raises CheckpointError when the checkpoint's template cannot render one of the chats.
    """
    sequences = []
    for number, chat in enumerate(chats, start=1):
        try:
            ids = tokenizer.encode_chat(chat)
        except RequestError:
            ids = _without_system(tokenizer, chat, number)
        if not ids:
            raise CheckpointError("the checkpoint's chat template renders a chat to nothing; is it a chat model's?")
        sequences.append(ids)
    return sequences


def _without_system(tokenizer: EncodesChats, chat: Chat, number: int) -> list[int]:
    rest = [message for message in chat if message["role"] != "system"]
    try:
        return tokenizer.encode_chat(rest)
    except RequestError as error:
        roles = ", ".join(message["role"] for message in rest[:8]) + (", ..." if len(rest) > 8 else "")
        raise CheckpointError(f"the checkpoint cannot render chat {number} ({roles}): {error}") from None


class _WrongLine(Exception):
    """What is wrong with a line, for `parse_chats` to say where."""


def _chat(line: bytes) -> Chat:
    if len(line) > MAX_LINE_BYTES:
        raise _WrongLine(f"it has {len(line)} bytes; at most {MAX_LINE_BYTES} are taken")
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except UnicodeDecodeError as error:
        raise _WrongLine(f"not UTF-8 text, byte {error.start} is 0x{line[error.start]:02x}") from None
    except RecursionError:
        raise _WrongLine("nested too deeply; expected flat messages") from None
    except ValueError as error:
        raise _WrongLine(f"not valid JSON, {error}") from None
    if isinstance(value, dict):
        if "messages" not in value:
            raise _WrongLine(f'no "messages" among its keys {_short(repr(list(value)))}')
        value = value["messages"]
    if not isinstance(value, list):
        raise _WrongLine(f"found {_kind(value)} where a list of messages is expected")
    if len(value) > MAX_MESSAGES:
        raise _WrongLine(f"it has {len(value)} messages; at most {MAX_MESSAGES} are taken")
    chat = [_message(item, f"messages[{i}]") for i, item in enumerate(value)]
    if not any(message["content"].strip() for message in chat):
        raise _WrongLine("the chat has no text")
    return chat


def _message(item: object, where: str) -> dict[str, str]:
    if not isinstance(item, dict):
        raise _WrongLine(f"{where} is {_kind(item)}; expected an object with role and content")
    role = item.get("role")
    if role not in ROLES:
        found = _short(repr(role)) if "role" in item else "missing"
        raise _WrongLine(f"{where}: role is {found}; roles are: {', '.join(ROLES)}")
    # OpenAI's own examples leave the content of a tool call out
    if "content" not in item and "tool_calls" not in item:
        raise _WrongLine(f"{where} has no content")
    content = item.get("content")
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise _WrongLine(f"{where}: content is {_kind(content)}; expected text")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _WrongLine(f"{where}: character {error.start} of content is half of a surrogate pair") from None
    return {"role": str(role), "content": content}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return result


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
