"""What a caller gives and gets, as frozen values; everything that a caller can get wrong is refused here.

Knows nothing of gRPC. Every refusal is an InvalidRequest that says what was found and what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from hermes_deploy.client.errors import InvalidRequest
from hermes_deploy.client.sampling import check_text
from hermes_deploy.protocol import tensors

Role = Literal["system", "user", "assistant"]
Door = Literal["chat", "ensemble"]
FinishReason = Literal["stop", "length"]

ROLES: tuple[str, ...] = get_args(Role)
MODEL_OF_DOOR: dict[str, str] = {"chat": tensors.ENGINE, "ensemble": tensors.ENSEMBLE}


@dataclass(frozen=True)
class Message:
    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequest(f"unknown role {self.role!r}; roles are: {', '.join(ROLES)}")
        check_text(f"the content of the {self.role} message", self.content)


@dataclass(frozen=True)
class Usage:
    """Tokens. `cached_tokens` of the prompt's were in the server's cache; the completion's are those of all answers."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """One token and its natural log probability; `top`: (token id, log probability) of the likeliest, best first.

    They are the model's own: of its raw logits, before temperature and every other setting.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Timing:
    """Seconds, as this side saw them: from the call to the first piece, and to the end."""

    first_piece_s: float
    total_s: float


@dataclass(frozen=True)
class Piece:
    """What came since the last piece of answer `index`. `finish_reason` is None until that answer's last one.

    `usage`: of that answer so far. `logprobs`: one for each of `token_ids` where they were asked for.
    `prompt_logprobs`: in the first piece, one for each token of the prompt but the first.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    usage: Usage
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One of the n answers: `finish_reason` is "stop" (it was complete, or a stop text came) or "length"."""

    index: int
    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A whole answer. `choices` are the n that were asked for; `text` and `finish_reason` are the first one's."""

    choices: tuple[Choice, ...]
    usage: Usage
    timing: Timing = field(compare=False)
    request_id: str = field(compare=False)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return self.choices[0].logprobs

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first piece by the time that they took; None for an answer of one piece."""
        seconds = self.timing.total_s - self.timing.first_piece_s
        return (
            (self.usage.completion_tokens - 1) / seconds if seconds > 0 and self.usage.completion_tokens > 1 else None
        )


@dataclass(frozen=True)
class RawPrompt:
    """The text of a whole rendered prompt, instead of messages: what spells a control token in it is one.

    Give it only text that nobody else could write into: in messages control tokens cannot be forged, here they can.
    """

    text: str

    def __post_init__(self) -> None:
        check_text("the raw prompt", self.text)
        if not self.text:
            raise InvalidRequest("the raw prompt is empty; give the whole rendered prompt")


Prompt = str | Sequence[Message | Mapping[str, str]] | RawPrompt


def checked_prompt(prompt: Prompt, system: str | None) -> tuple[Message, ...] | RawPrompt:
    """A text is one user message; mappings have the keys `role` and `content`; `system` goes first."""
    if isinstance(prompt, RawPrompt):
        if system is not None:
            raise InvalidRequest("system= was given with a RawPrompt, which is the whole prompt; write it into that")
        return prompt
    if isinstance(prompt, str):
        messages = [Message("user", prompt)]
    elif isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray):
        messages = [_message(i, entry) for i, entry in enumerate(prompt)]
    else:
        raise InvalidRequest(
            f"the prompt is {type(prompt).__name__}; it takes a text, a list of messages or a RawPrompt"
        )
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


def _message(index: int, entry: object) -> Message:
    if isinstance(entry, Message):
        return entry
    if not isinstance(entry, Mapping):
        raise InvalidRequest(f"message {index} is {type(entry).__name__}; it must be a Message or a mapping")
    if set(entry) != {"role", "content"}:
        found = ", ".join(map(str, entry)) or "nothing"
        raise InvalidRequest(f"message {index} has the keys {found}; it must have role and content, and nothing else")
    return Message(entry["role"], entry["content"])
