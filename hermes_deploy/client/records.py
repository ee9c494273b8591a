"""What a caller gives and gets, as frozen values; everything that a caller can get wrong is refused here.

Knows nothing of gRPC. Every refusal is an InvalidRequest that says what was found and what is allowed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hermes_deploy.client.errors import InvalidRequest
from hermes_deploy.protocol import tensors

Role = Literal["system", "user", "assistant"]
Door = Literal["chat", "ensemble"]
FinishReason = Literal["stop", "length"]

ROLES: tuple[str, ...] = get_args(Role)
MODEL_OF_DOOR: dict[str, str] = {"chat": tensors.ENGINE, "ensemble": tensors.ENSEMBLE}

INT32_MAX = 2**31 - 1
UINT64_MAX = 2**64 - 1


@dataclass(frozen=True)
class Message:
    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequest(f"unknown role {self.role!r}; roles are: {', '.join(ROLES)}")
        check_text(f"the content of the {self.role} message", self.content)


@dataclass(frozen=True)
class Sampling:
    """How to pick tokens. None leaves the choice to the server (the model's generation_config).

    max_tokens: 1 or more; temperature: 0 (greedy) or more; top_p: in (0, 1]; top_k: 0 (off) or more;
    seed: 0 .. 2**64-1; stop: texts that end the answer and are not part of it.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        elif isinstance(self.stop, Sequence):
            object.__setattr__(self, "stop", tuple(self.stop))
        else:
            raise InvalidRequest(f"stop is {self.stop!r}; it takes a text or a list of texts")
        _check_integer("max_tokens", self.max_tokens, 1, INT32_MAX)
        _check_integer("top_k", self.top_k, 0, INT32_MAX)
        _check_integer("seed", self.seed, 0, UINT64_MAX)
        temperature = _check_number("temperature", self.temperature, "0 (greedy) or more")
        if temperature is not None and temperature < 0:
            raise InvalidRequest(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        top_p = _check_number("top_p", self.top_p, "in (0, 1]")
        if top_p is not None and not 0 < top_p <= 1:
            raise InvalidRequest(f"top_p is {self.top_p}; it must be in (0, 1], where 1 is off")
        for text in self.stop:
            check_text("a stop text", text)
            if not text:
                raise InvalidRequest("a stop text is empty: it would end every answer before it starts")


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timing:
    """Seconds, as this side saw them: from the call to the first piece, and to the end."""

    first_piece_s: float
    total_s: float


@dataclass(frozen=True)
class Piece:
    """What came since the last piece. `finish_reason` is None until the last one."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    usage: Usage


@dataclass(frozen=True)
class Answer:
    """A whole answer: `finish_reason` is "stop" (it was complete, or a stop text came) or "length"."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    timing: Timing = field(compare=False)
    request_id: str = field(compare=False)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first piece by the time that they took; None for an answer of one piece."""
        seconds = self.timing.total_s - self.timing.first_piece_s
        return (
            (self.usage.completion_tokens - 1) / seconds if seconds > 0 and self.usage.completion_tokens > 1 else None
        )


Prompt = str | Sequence[Message | Mapping[str, str]]


def chat_messages(prompt: Prompt, system: str | None) -> tuple[Message, ...]:
    """A text is one user message; mappings have the keys `role` and `content`; `system` goes first."""
    if isinstance(prompt, str):
        messages = [Message("user", prompt)]
    elif isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray):
        messages = [_message(i, entry) for i, entry in enumerate(prompt)]
    else:
        raise InvalidRequest(f"the prompt is {type(prompt).__name__}; it takes a text or a list of messages")
    if not messages:
        raise InvalidRequest("no messages: give at least one")
    if system is not None:
        if any(m.role == "system" for m in messages):
            raise InvalidRequest("system= was given and the messages have a system message too; give one of the two")
        messages.insert(0, Message("system", system))
    return tuple(messages)


def messages_json(messages: Sequence[Message]) -> bytes:
    """The `messages` tensor: UTF-8 JSON."""
    plain = [{"role": m.role, "content": m.content} for m in messages]
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()


def check_door(door: str) -> str:
    if door not in MODEL_OF_DOOR:
        raise InvalidRequest(f"unknown door {door!r}; doors are: {', '.join(MODEL_OF_DOOR)}")
    return door


def check_timeout(timeout: float | None) -> float | None:
    seconds = _check_number("timeout", timeout, "more than 0, in seconds")
    if seconds is not None and seconds <= 0:
        raise InvalidRequest(f"timeout is {timeout}; it must be more than 0, in seconds")
    return seconds


def check_text(what: str, text: Any) -> None:
    """Refuse what is not a text, or cannot be UTF-8."""
    if not isinstance(text, str):
        raise InvalidRequest(f"{what} is {type(text).__name__}; it must be a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{what} has half of a character at position {error.start} (lone surrogate "
            f"U+{ord(text[error.start]):04X}), which UTF-8 cannot carry. The text was probably cut, or read "
            "with the wrong encoding, before it came here"
        ) from None


def _message(index: int, entry: object) -> Message:
    if isinstance(entry, Message):
        return entry
    if not isinstance(entry, Mapping):
        raise InvalidRequest(f"message {index} is {type(entry).__name__}; it must be a Message or a mapping")
    if set(entry) != {"role", "content"}:
        found = ", ".join(map(str, entry)) or "nothing"
        raise InvalidRequest(f"message {index} has the keys {found}; it must have role and content, and nothing else")
    return Message(entry["role"], entry["content"])


def _check_integer(name: str, value: Any, least: int, most: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(f"{name} is {value!r}; it must be a whole number")
    if not least <= value <= most:
        raise InvalidRequest(f"{name} is {value}; it must be from {least} to {most}")


def _check_number(name: str, value: Any, allowed: str) -> float | None:
    """The value as it will be on the wire (32-bit float), or None."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidRequest(f"{name} is {value!r}; it must be a number: {allowed}")
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except (OverflowError, struct.error):
        rounded = math.inf
    if not math.isfinite(rounded):
        raise InvalidRequest(f"{name} is {value}; it must be {allowed}")
    return rounded
