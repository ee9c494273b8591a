"""The texts that calibration runs over, and how they become token ids.

The chats ship with the package (`chats.jsonl`, our own writing: several turns, several languages,
code). They are rendered with the model's own template. Knows no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Protocol

from hermes_deploy.errors import CheckpointError, QuantizationError, RequestError

Chat = list[dict[str, str]]
"""Messages with `role` and `content`, oldest first."""


class EncodesChats(Protocol):
    """What is needed of `chat.ChatTokenizer`."""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]: ...


def calibration_chats(count: int | None = None) -> list[Chat]:
    """The first `count` chats that ship with the package (all of them for None).

    Raises QuantizationError when more are asked for than there are.
    """
    text = (resources.files(__package__) / "chats.jsonl").read_text(encoding="utf-8")
    chats: list[Chat] = [json.loads(line) for line in text.splitlines() if line.strip()]
    if count is not None and count > len(chats):
        raise QuantizationError(f"{count} calibration chats were asked for; {len(chats)} ship with the package")
    return chats[:count]


def encode_chats(tokenizer: EncodesChats, chats: Sequence[Chat]) -> list[list[int]]:
    """Token ids of each chat. A system message is left out for a template that refuses one.

    Raises CheckpointError when the checkpoint's template cannot render a chat of user and assistant.
    """
    sequences = []
    for chat in chats:
        try:
            ids = tokenizer.encode_chat(chat)
        except RequestError:
            ids = _without_system(tokenizer, chat)
        if not ids:
            raise CheckpointError("the checkpoint's chat template renders a chat to nothing; is it a chat model's?")
        sequences.append(ids)
    return sequences


def _without_system(tokenizer: EncodesChats, chat: Chat) -> list[int]:
    try:
        return tokenizer.encode_chat([message for message in chat if message["role"] != "system"])
    except RequestError as error:
        raise CheckpointError(f"the checkpoint cannot render a plain chat of user and assistant: {error}") from None
