"""How an answer is chosen, as one frozen value; what a caller can get wrong in it is refused here.

Knows nothing of gRPC. Every refusal is an InvalidRequest that says what was found and what is allowed.
What only the server can know (token ids of its model, how many slots it has) it refuses itself.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from hermes_deploy.client.errors import InvalidRequest
from hermes_deploy.protocol.tensors import MAX_LOGPROBS

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
UINT64_MAX = 2**64 - 1

_WHOLE: dict[str, tuple[int, int]] = {
    "max_tokens": (1, INT32_MAX),
    "min_tokens": (0, INT32_MAX),
    "top_k": (0, INT32_MAX),
    "seed": (0, UINT64_MAX),
    "n": (1, INT32_MAX),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
    "priority": (-100, 100),
}


@dataclass(frozen=True)
class _Range:
    """`open_low`: `low` itself is not in it."""

    low: float
    high: float
    allowed: str
    open_low: bool = False


_NUMBERS: dict[str, _Range] = {
    "temperature": _Range(0, math.inf, "0 (greedy) or more"),
    "top_p": _Range(0, 1, "in (0, 1], where 1 is off", open_low=True),
    "min_p": _Range(0, 1, "from 0, which is off, to 1"),
    "typical_p": _Range(0, 1, "in (0, 1], where 1 is off", open_low=True),
    "repetition_penalty": _Range(0, 10, "in (0, 10], where 1 is off", open_low=True),
    "presence_penalty": _Range(-2, 2, "from -2 to 2, where 0 is off"),
    "frequency_penalty": _Range(-2, 2, "from -2 to 2, where 0 is off"),
}
_BIAS = _Range(-100, 100, "from -100 to 100")


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keyword arguments of `Client.stream` and `Client.ask`."""

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    n: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool | None
    bad_words: str | Sequence[str]
    logit_bias: Mapping[int, float]
    logprobs: int | None
    prompt_logprobs: int | None
    priority: int | None
    client: str | None


@dataclass(frozen=True)
class Sampling:
    """How to pick tokens. None leaves the choice to the server (the model's generation_config).

    Length: max_tokens, 1 or more, is bounded by the context; before min_tokens neither the model nor a stop text
    ends the answer; stop: texts that end it and are not part of it; stop_token_ids do so beside the model's own,
    which ignore_eos switches off.

    Choice: temperature, 0 (greedy) or more; top_k, 0 (off) or more; top_p and typical_p in (0, 1], 1 is off;
    min_p 0 (off) to 1; repetition_penalty over prompt and answer in (0, 10], 1 is off; presence_penalty and
    frequency_penalty over the answer, -2 to 2; logit_bias: token id -> what is added to its logit, -100 to 100;
    bad_words: texts that never come; seed: 0 .. 2**64-1, the same gives the same answer.

    n: answers to this prompt, at most as many as the server has slots. logprobs: how many alternatives (0 .. 20)
    come with each token and its log probability; prompt_logprobs: with each token of the prompt.

    priority: -100 to 100, larger goes first; client: whose request it is: clients share the server evenly.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    n: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool | None = None
    bad_words: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int | None = None
    client: str | None = None

    def __post_init__(self) -> None:
        self._become_tuples()
        for name, (least, most) in _WHOLE.items():
            check_whole(name, getattr(self, name), least, most)
        for name, allowed in _NUMBERS.items():
            check_number(name, getattr(self, name), allowed)
        if self.ignore_eos is not None and not isinstance(self.ignore_eos, bool):
            raise InvalidRequest(f"ignore_eos is {self.ignore_eos!r}; it must be True or False")
        for token in self.stop_token_ids:
            check_whole("a token id of stop_token_ids", token, 0, INT64_MAX)
        for token, bias in self.logit_bias:
            check_whole("a token id of logit_bias", token, 0, INT64_MAX)
            check_number(f"the logit_bias of token {token}", bias, _BIAS)
        for text in self.stop:
            check_text("a stop text", text)
            if not text:
                raise InvalidRequest("a stop text is empty: it would end every answer before it starts")
        for text in self.bad_words:
            check_text("a bad word", text)
            if not text.strip():
                raise InvalidRequest("a bad word is empty; give the text that must not come")
        if self.client is not None:
            check_text("client", self.client)

    def _become_tuples(self) -> None:
        """One text stands for a list of one, a mapping for its pairs."""
        for name, what in (
            ("stop", "a text or a list of texts"),
            ("bad_words", "a text or a list of texts"),
            ("stop_token_ids", "a list of token ids"),
        ):
            value: Any = getattr(self, name)
            if isinstance(value, str) and name != "stop_token_ids":
                value = (value,)
            if not isinstance(value, Sequence) or isinstance(value, str | bytes):
                raise InvalidRequest(f"{name} is {value!r}; it takes {what}")
            object.__setattr__(self, name, tuple(value))
        bias: Any = self.logit_bias
        pairs = tuple(bias.items()) if isinstance(bias, Mapping) else bias
        if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise InvalidRequest(f"logit_bias is {bias!r}; it takes a mapping of token id to number")
        object.__setattr__(self, "logit_bias", pairs)


def check_timeout(timeout: float | None) -> float | None:
    """Seconds. Refuses what is not more than 0."""
    return check_number("timeout", timeout, _Range(0, math.inf, "more than 0, in seconds", open_low=True))


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


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(f"{name} is {value!r}; it must be a whole number")
    if not least <= value <= most:
        raise InvalidRequest(f"{name} is {value}; it must be from {least} to {most}")


def check_number(name: str, value: Any, allowed: _Range) -> float | None:
    """The value as it will be on the wire (32-bit float), or None."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidRequest(f"{name} is {value!r}; it must be a number: {allowed.allowed}")
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except (OverflowError, struct.error):
        rounded = math.inf
    below = rounded <= allowed.low if allowed.open_low else rounded < allowed.low
    if not math.isfinite(rounded) or below or rounded > allowed.high:
        raise InvalidRequest(f"{name} is {value}; it must be {allowed.allowed}")
    return rounded
