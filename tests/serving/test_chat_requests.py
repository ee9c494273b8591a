"""What a request's tensors become, and which are refused, without any engine."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from hermes_deploy.chat import ChatTokenizer, Room
from hermes_deploy.checkpoints.tokenizer_files import TokenizerFiles
from hermes_deploy.errors import RequestError
from hermes_deploy.protocol.tensors import SAMPLING
from hermes_deploy.repository.engine_config import SamplingDefaults
from hermes_deploy.runtime.sampling import Sampling
from hermes_deploy.serving.chat_requests import Asked, read_request
from tests.fixtures.tiny import CHATML, byte_tokenizer_json
from tests.serving import fake_triton

SLOTS = 4
OWN_STOPS = frozenset({2, 3})
DEFAULTS = SamplingDefaults(
    max_tokens=77, temperature=0.5, top_k=40, top_p=0.75, min_p=0.125, typical_p=0.25, repetition_penalty=1.5
)
_DTYPES: dict[str, Any] = {
    "BYTES": np.object_,
    "BOOL": np.bool_,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT64": np.uint64,
    "FP32": np.float32,
}
_TABLE = {tensor.name: tensor for tensor in SAMPLING}


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer(TokenizerFiles(byte_tokenizer_json().encode(), CHATML, None, "<|im_end|>", ()))


def read(tokenizer: ChatTokenizer, **inputs: Any) -> Asked:
    """`inputs`: a value, or a list of them, for each tensor of the table."""
    arrays = {
        name: np.array(value if isinstance(value, list) else [value], dtype=_DTYPES[_TABLE[name].dtype])
        for name, value in inputs.items()
    }
    request = fake_triton.Request(input_ids=np.array([10, 11, 12]), **arrays)
    return read_request(fake_triton, request, tokenizer, DEFAULTS, OWN_STOPS, SLOTS, Room(64, tokenizer.longest_token))


def test_a_request_that_says_nothing_gets_the_artifacts_defaults(tokenizer: ChatTokenizer) -> None:
    asked = read(tokenizer)
    (only,) = asked.generations
    assert asked.stop_texts == ()
    assert only.prompt.tolist() == [10, 11, 12]
    assert only.sampling == Sampling(
        temperature=0.5, top_k=40, top_p=0.75, min_p=0.125, typical_p=0.25, repetition_penalty=1.5
    )
    assert (only.max_tokens, only.min_tokens, only.stop_ids) == (77, 0, OWN_STOPS)
    assert (only.logprobs, only.prompt_logprobs, only.deadline) == (None, None, None)
    assert (only.priority, only.client) == (0, "")


def test_every_control_reaches_the_token_loop(tokenizer: ChatTokenizer) -> None:
    before = time.monotonic()
    asked = read(
        tokenizer,
        max_tokens=9,
        min_tokens=3,
        temperature=0.25,
        top_k=7,
        top_p=0.5,
        min_p=0.5,
        typical_p=0.5,
        repetition_penalty=2,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        seed=2**64 - 1,
        n=1,
        stop=[b"END", b"\xc3\xa9"],
        stop_token_ids=[5, 6],
        ignore_eos=False,
        bad_words=[b"dog"],
        logit_bias_ids=[8, 9],
        logit_bias_values=[-100, 0.5],
        logprobs=2,
        prompt_logprobs=0,
        priority=-3,
        client=b"alice",
        timeout_ms=2000,
    )
    (only,) = asked.generations
    assert asked.stop_texts == ("END", "é")
    assert only.sampling == Sampling(
        temperature=0.25,
        top_k=7,
        top_p=0.5,
        seed=2**64 - 1,
        min_p=0.5,
        typical_p=0.5,
        repetition_penalty=2,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        logit_bias=((8, -100.0), (9, 0.5)),
        bad_words=(tuple(tokenizer.encode("dog")), tuple(tokenizer.encode(" dog"))),
    )
    assert (only.max_tokens, only.min_tokens, only.stop_ids) == (9, 3, OWN_STOPS | {5, 6})
    assert (only.logprobs, only.prompt_logprobs, only.priority, only.client) == (2, 0, -3, "alice")
    assert only.deadline is not None and before + 2 <= only.deadline <= time.monotonic() + 2


def test_ignore_eos_switches_off_the_models_stops_and_no_other(tokenizer: ChatTokenizer) -> None:
    (only,) = read(tokenizer, ignore_eos=True, stop_token_ids=[3, 5]).generations
    assert only.stop_ids == {3, 5}


def test_several_answers_differ_in_their_index_and_the_prompt_is_looked_at_once(tokenizer: ChatTokenizer) -> None:
    generations = read(tokenizer, n=SLOTS, seed=1, logprobs=1, prompt_logprobs=1).generations
    assert [one.index for one in generations] == list(range(SLOTS))
    assert [one.prompt_logprobs for one in generations] == [1, None, None, None]
    assert {(one.logprobs, one.sampling.seed) for one in generations} == {(1, 1)}


@pytest.mark.parametrize("word", ["dog", " dog", "  dog"])
def test_a_bad_word_is_banned_alone_and_after_a_space(tokenizer: ChatTokenizer, word: str) -> None:
    (only,) = read(tokenizer, bad_words=[word.encode(), b"dog"]).generations
    assert only.sampling.bad_words == (tuple(tokenizer.encode("dog")), tuple(tokenizer.encode(" dog")))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"n": 0}, "n is 0; this server has 4 slots, one for each answer, so allowed is 1 to 4"),
        ({"n": 5}, "n is 5; this server has 4 slots"),
        ({"timeout_ms": 0}, "timeout_ms is 0; allowed is 1 or more"),
        ({"logit_bias_ids": [1, 2], "logit_bias_values": [1]}, "has 2 elements and logit_bias_values 1; give as many"),
        ({"logit_bias_ids": [1]}, "has 1 elements and logit_bias_values 0"),
        ({"logit_bias_values": [1]}, "has 0 elements and logit_bias_values 1"),
        ({"logit_bias_ids": [1] * 1025, "logit_bias_values": [1] * 1025}, "has 1025 token ids; at most 1024"),
        ({"logit_bias_ids": [1, 1], "logit_bias_values": [1, 2]}, "names token 1 twice"),
        ({"logit_bias_ids": [1], "logit_bias_values": [101]}, "logit_bias of token 1 is 101"),
        ({"stop_token_ids": list(range(257))}, "has 257 token ids; at most 256"),
        ({"bad_words": [b"x"] * 129}, "has 129 texts; at most 128"),
        ({"bad_words": [b" "]}, "has 1 characters; allowed are 1 to 256, and not only spaces"),
        ({"bad_words": [b"x" * 257]}, "has 257 characters; allowed are 1 to 256"),
        ({"bad_words": [b"x" * 80]}, "is 80 tokens long; at most 64"),
        ({"client": b"x" * 257}, "client has 257 characters; at most 256"),
        ({"min_p": 1.5}, "min_p is 1.5; allowed is 0"),
        ({"typical_p": 0.0}, "typical_p is 0.0; allowed is more than 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; allowed is more than 0"),
        ({"presence_penalty": 2.5}, "presence_penalty is 2.5; allowed is -2 to 2"),
        ({"frequency_penalty": np.nan}, "frequency_penalty is nan; allowed is -2 to 2"),
    ],
)
def test_what_is_not_allowed_is_refused_with_what_was_found(
    tokenizer: ChatTokenizer, inputs: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError) as refused:
        read(tokenizer, **inputs)
    assert words in str(refused.value)
    assert refused.value.code == "INVALID_ARGUMENT"
