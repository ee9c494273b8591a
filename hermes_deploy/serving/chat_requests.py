"""A Triton request of either door to its `Generation`s plus stop texts. Every value is checked.

How the prompt is read is prompts.py's. What a request does not say comes from the artifact's sampling
defaults. Checked here is what only text and requests have; ranges of the sampling values are `Sampling`'s,
and what the engine cannot take is refused by the loop.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from hermes_deploy.chat import ChatTokenizer, Room
from hermes_deploy.chat.stop_text import MAX_STOPS
from hermes_deploy.errors import RequestError
from hermes_deploy.protocol.tensors import ENGINE, MODELS, PROMPT_FORMS, STREAM, Tensor
from hermes_deploy.repository.engine_config import SamplingDefaults
from hermes_deploy.runtime.sampling import LONGEST_BAD_WORD, MOST_BAD_WORDS, MOST_BIASES, Sampling
from hermes_deploy.runtime.stream import Generation
from hermes_deploy.serving.prompts import read_prompt
from hermes_deploy.serving.tensor_io import read, read_one, read_text, read_texts

MAX_STOP_TOKEN_IDS = 256
MAX_CLIENT_CHARACTERS = 256
MAX_BAD_WORDS = MOST_BAD_WORDS // 2
"""Each text is at most two sequences of token ids."""
MAX_BAD_WORD_CHARACTERS = 256

_INPUTS: dict[str, Tensor] = {tensor.name: tensor for tensor in MODELS[ENGINE].inputs}


@dataclass(frozen=True)
class Asked:
    """`generations`: one for each of the n answers to one prompt, in the order of their index.

    `in_one`: the answer is sent when it is complete, in one response.
    """

    generations: tuple[Generation, ...]
    stop_texts: tuple[str, ...]
    in_one: bool = False


def read_request(
    pb_utils: Any,
    request: Any,
    tokenizer: ChatTokenizer,
    defaults: SamplingDefaults,
    stop_ids: frozenset[int],
    slots: int,
    room: Room,
) -> Asked:
    """`stop_ids`: the model's own; `room`: the context's.

    Raises RequestError for anything that is not as the tensor table says.
    """
    given = _Given(pb_utils, request)
    timeout_ms = given.one("timeout_ms", None)
    if timeout_ms is not None and timeout_ms < 1:
        raise RequestError(f"timeout_ms is {timeout_ms}; allowed is 1 or more")
    # from here: reading a long prompt is part of the time that the caller gave
    deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1e3
    n = given.one("n", 1)
    if not 1 <= n <= slots:
        raise RequestError(f"n is {n}; this server has {slots} slots, one for each answer, so allowed is 1 to {slots}")
    in_one = not given.one(STREAM.name, True)
    if in_one and n > 1:
        raise RequestError(f"stream is false and n is {n}; one response holds one answer, so leave out one of the two")
    own_stops = frozenset[int]() if given.one("ignore_eos", False) else stop_ids
    first = Generation(
        read_prompt(pb_utils, request, tokenizer, PROMPT_FORMS, room),
        max_tokens=given.one("max_tokens", defaults.max_tokens),
        sampling=_sampling(given, tokenizer, defaults),
        stop_ids=own_stops | _stop_token_ids(given),
        min_tokens=given.one("min_tokens", 0),
        logprobs=given.one("logprobs", None),
        prompt_logprobs=given.one("prompt_logprobs", None),
        priority=given.one("priority", 0),
        client=_client(given),
        deadline=deadline,
    )
    # the prompt is the same for all, and so are its logprobs
    others = (replace(first, index=index, prompt_logprobs=None) for index in range(1, n))
    return Asked((first, *others), given.texts("stop", MAX_STOPS), in_one)


class _Given:
    """The inputs of one request by name, each checked for dtype and shape where it is read."""

    def __init__(self, pb_utils: Any, request: Any) -> None:
        self._triton = pb_utils
        self._request = request

    def one(self, name: str, default: Any) -> Any:
        value = read_one(self._triton, self._request, _INPUTS[name])
        return default if value is None else value

    def many(self, name: str) -> npt.NDArray[Any] | None:
        return read(self._triton, self._request, _INPUTS[name])

    def text(self, name: str) -> str | None:
        return read_text(self._triton, self._request, _INPUTS[name])

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        return read_texts(self._triton, self._request, _INPUTS[name], most)


def _sampling(given: _Given, tokenizer: ChatTokenizer, defaults: SamplingDefaults) -> Sampling:
    return Sampling(
        temperature=given.one("temperature", defaults.temperature),
        top_k=given.one("top_k", defaults.top_k),
        top_p=given.one("top_p", defaults.top_p),
        seed=given.one("seed", None),
        min_p=given.one("min_p", defaults.min_p),
        typical_p=given.one("typical_p", defaults.typical_p),
        repetition_penalty=given.one("repetition_penalty", defaults.repetition_penalty),
        presence_penalty=given.one("presence_penalty", 0.0),
        frequency_penalty=given.one("frequency_penalty", 0.0),
        logit_bias=_logit_bias(given),
        bad_words=_bad_words(given.texts("bad_words", MAX_BAD_WORDS), tokenizer),
    )


def _logit_bias(given: _Given) -> tuple[tuple[int, float], ...]:
    ids, values = given.many("logit_bias_ids"), given.many("logit_bias_values")
    if ids is None and values is None:
        return ()
    if ids is None or values is None or len(ids) != len(values):
        found = [0 if array is None else len(array) for array in (ids, values)]
        raise RequestError(f"logit_bias_ids has {found[0]} elements and logit_bias_values {found[1]}; give as many")
    if len(ids) > MOST_BIASES:
        raise RequestError(f"logit_bias_ids has {len(ids)} token ids; at most {MOST_BIASES} are taken")
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))


def _bad_words(texts: Sequence[str], tokenizer: ChatTokenizer) -> tuple[tuple[int, ...], ...]:
    """Token ids of each text as an answer would begin with it and as it would come after a space."""
    words: dict[tuple[int, ...], None] = {}
    for text in texts:
        if not text.strip() or len(text) > MAX_BAD_WORD_CHARACTERS:
            raise RequestError(
                f"the bad word {text[:60]!r} has {len(text)} characters; allowed are 1 to "
                f"{MAX_BAD_WORD_CHARACTERS}, and not only spaces"
            )
        for form in (text.lstrip(" "), " " + text.lstrip(" ")):
            ids = tuple(tokenizer.encode_text(form))
            if len(ids) > LONGEST_BAD_WORD:
                raise RequestError(
                    f"the bad word {text[:60]!r} is {len(ids)} tokens long; at most {LONGEST_BAD_WORD} are taken"
                )
            words[ids] = None
    return tuple(words)


def _stop_token_ids(given: _Given) -> frozenset[int]:
    ids = given.many("stop_token_ids")
    if ids is None:
        return frozenset()
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise RequestError(f"stop_token_ids has {len(ids)} token ids; at most {MAX_STOP_TOKEN_IDS} are taken")
    return frozenset(ids.tolist())


def _client(given: _Given) -> str:
    client = given.text("client") or ""
    if len(client) > MAX_CLIENT_CHARACTERS:
        raise RequestError(f"client has {len(client)} characters; at most {MAX_CLIENT_CHARACTERS} are taken")
    return client
