"""The JSON of a chat on the wire -> checked messages. No engine, no template.

Size, count and nesting are bounded before anything is parsed, and what no tokenizer could fit into the context is
refused before anything is tokenized.

A message is {"role": "system" | "user" | "assistant", "content": text}; null content, as OpenAI
clients send it, is empty text. Anything else is a RequestError that says where it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hermes_deploy.chat.json_shape import Shape, check_shape
from hermes_deploy.errors import RequestError

ROLES = ("system", "user", "assistant")
MAX_BYTES = 8 << 20
MAX_MESSAGES = 1024
MAX_CHARACTERS = 2 << 20


_SHAPE = Shape(strings=8 * MAX_MESSAGES, containers=4 * MAX_MESSAGES, depth=16)
"""More than a chat needs, so that what is wrong in a small one is told in its own words."""
_LONGEST_ESCAPE = 6
"""Bytes of JSON that one byte of text takes at most: \\u0041."""
_BYTES_A_MESSAGE = 64
"""Of JSON, beside the content."""


@dataclass(frozen=True)
class Room:
    """What `max_context` tokens can hold when none is longer than `longest_token` bytes."""

    max_context: int
    longest_token: int

    @property
    def text_bytes(self) -> int:
        """Bytes of UTF-8: more never fit."""
        return self.max_context * self.longest_token

    @property
    def json_bytes(self) -> int:
        """Bytes of `messages`, had every letter been escaped."""
        return _LONGEST_ESCAPE * self.text_bytes + _BYTES_A_MESSAGE * MAX_MESSAGES


def parse_messages(data: bytes, room: Room | None = None) -> list[dict[str, str]]:
    """`data`: UTF-8 JSON array of messages. Raises RequestError; OUT_OF_RANGE for what `room` cannot hold."""
    if len(data) > MAX_BYTES:
        raise RequestError(f"messages has {len(data)} bytes; at most {MAX_BYTES} are taken")
    if room is not None and len(data) > room.json_bytes:
        raise does_not_fit(f"messages has {len(data)} bytes", f"{room.json_bytes} bytes of JSON", room)
    # nothing of a size is made of it before this
    check_shape(data, _SHAPE, "messages")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"messages is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from None
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
    except ValueError as error:
        raise RequestError(f"messages is not valid JSON: {error}") from None
    if not isinstance(value, list):
        raise RequestError(f"messages is a JSON {type(value).__name__}; expected an array of messages")
    messages = check_messages(value)
    if room is not None:
        size = sum(len(message["content"].encode()) for message in messages)
        if size > room.text_bytes:
            raise does_not_fit(f"messages has {size} bytes of content", f"{room.text_bytes} bytes of text", room)
    return messages


def does_not_fit(found: str, most: str, room: Room) -> RequestError:
    """`found` and `most`: what came, and what the context holds, in words."""
    return RequestError(
        f"{found}; the context of this server is {room.max_context} tokens, which hold at most {most}", "OUT_OF_RANGE"
    )


def check_messages(messages: Iterable[Any]) -> list[dict[str, str]]:
    """New, plain messages with exactly role and content. Raises RequestError."""
    checked: list[dict[str, str]] = []
    characters = 0
    for i, message in enumerate(messages):
        if i == MAX_MESSAGES:
            raise RequestError(f"there are more than {MAX_MESSAGES} messages")
        checked.append(_check(message, f"messages[{i}]"))
        characters += len(checked[-1]["content"])
        if characters > MAX_CHARACTERS:
            raise RequestError(f"messages has more than {MAX_CHARACTERS} characters of content")
    if not checked:
        raise RequestError('messages is empty; expected at least one, such as {"role": "user", "content": "Hello"}')
    return checked


def check_unicode(text: str, where: str) -> str:
    """`text` itself. Raises RequestError when it holds half of a surrogate pair, which UTF-8 cannot say."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{where} is not valid Unicode text: character {error.start} is half of a surrogate pair "
            f"(U+{ord(text[error.start]):04X})"
        ) from None
    return text


def _check(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} is a {type(message).__name__}; expected an object with role and content")
    unknown = [key for key in message if key not in ("role", "content")]
    if unknown:
        raise RequestError(f"{where} has the unknown key {str(unknown[0])[:60]!r}; keys are: role, content")
    if "role" not in message or "content" not in message:
        raise RequestError(f"{where} needs both role and content")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise RequestError(f"{where}: role is {str(role)[:60]!r}; roles are: {', '.join(ROLES)}")
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise RequestError(f"{where}: content is a {type(content).__name__}; expected text")
    return {"role": str(role), "content": check_unicode(content, f"{where}: content")}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return result
