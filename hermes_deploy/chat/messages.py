"""The JSON of a chat on the wire -> checked messages. Bounded in size and count; no engine, no template.

A message is {"role": "system" | "user" | "assistant", "content": text}; null content, as OpenAI
clients send it, is empty text. Anything else is a RequestError that says where it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from hermes_deploy.errors import RequestError

ROLES = ("system", "user", "assistant")
MAX_BYTES = 8 << 20
MAX_MESSAGES = 1024
MAX_CHARACTERS = 2 << 20


def parse_messages(data: bytes) -> list[dict[str, str]]:
    """`data`: UTF-8 JSON array of messages. Raises RequestError."""
    if len(data) > MAX_BYTES:
        raise RequestError(f"messages has {len(data)} bytes; at most {MAX_BYTES} are taken")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"messages is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from None
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates)
    except RecursionError:
        raise RequestError("messages is nested too deeply; expected an array of flat objects") from None
    except ValueError as error:
        raise RequestError(f"messages is not valid JSON: {error}") from None
    if not isinstance(value, list):
        raise RequestError(f"messages is a JSON {type(value).__name__}; expected an array of messages")
    return check_messages(value)


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
