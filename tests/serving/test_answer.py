"""From the token loop's deltas to pieces, without any engine: text, stop texts, and what is told with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints.tokenizer_files import TokenizerFiles
from hermes_deploy.runtime.sampling import TokenLogprobs
from hermes_deploy.runtime.stream import Delta, Generation
from hermes_deploy.serving.answer import Answer
from hermes_deploy.serving.tensor_io import piece_response
from tests.fixtures.tiny import CHATML, byte_tokenizer_json
from tests.serving import fake_triton

PROMPT = np.array([10, 11, 12])


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer(TokenizerFiles(byte_tokenizer_json().encode(), CHATML, None, "<|im_end|>", ()))


def sent(answer: Answer, delta: Delta) -> dict[str, Any]:
    return {name: array.tolist() for name, array in piece_response(fake_triton, answer.piece(delta)).tensors.items()}


def test_a_piece_has_no_tensor_that_says_nothing(tokenizer: ChatTokenizer) -> None:
    answer = Answer(tokenizer, Generation(PROMPT, 9), ())
    assert sent(answer, Delta(tuple(tokenizer.encode("ab")))) == {
        "text": [b"ab"],
        "token_ids": tokenizer.encode("ab"),
        "finish_reason": [b""],
        "prompt_tokens": [3],
        "completion_tokens": [2],
    }


def test_what_is_known_of_the_prompt_comes_once(tokenizer: ChatTokenizer) -> None:
    answer = Answer(tokenizer, Generation(PROMPT, 9, index=2, prompt_logprobs=1), ())
    known = (TokenLogprobs(-1.0, ((11, -1.0),)), TokenLogprobs(-2.0, ((30, -0.5),)))
    first = sent(answer, Delta((65,), reused_tokens=2, prompt_logprobs=known))
    assert (first["index"], first["cached_tokens"]) == ([2], [2])
    assert first["prompt_token_ids"] == [10, 11, 12]
    assert first["prompt_token_logprobs"] == [-1.0, -2.0]
    assert first["prompt_top_logprob_ids"] == [11, 30]
    assert first["prompt_top_logprobs"] == [-1.0, -0.5]
    assert set(sent(answer, Delta((66,), reused_tokens=2))) == {
        "text",
        "token_ids",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "index",
    }


def test_log_probabilities_are_row_major(tokenizer: ChatTokenizer) -> None:
    answer = Answer(tokenizer, Generation(PROMPT, 9, logprobs=2), ())
    logprobs = (TokenLogprobs(-1.0, ((1, -0.5), (2, -1.0))), TokenLogprobs(-0.25, ((3, -0.25), (4, -8.0))))
    piece = sent(answer, Delta((2, 3), logprobs=logprobs))
    assert piece["token_logprobs"] == [-1.0, -0.25]
    assert piece["top_logprob_ids"] == [1, 2, 3, 4]
    assert piece["top_logprobs"] == [-0.5, -1.0, -0.25, -8.0]
    assert "top_logprobs" not in sent(answer, Delta((2,), logprobs=(TokenLogprobs(-1.0),)))


@pytest.mark.parametrize("cut", [1, 3, 7])
@pytest.mark.parametrize(("min_tokens", "text"), [(0, "ab"), (2, "ab"), (3, "abEND ab"), (6, "abEND ab")])
def test_a_stop_text_counts_only_after_min_tokens_however_the_tokens_come(
    tokenizer: ChatTokenizer, cut: int, min_tokens: int, text: str
) -> None:
    ids = tokenizer.encode("abEND abEND cd")
    answer = Answer(tokenizer, Generation(PROMPT, 99, min_tokens=min_tokens), ["END"])
    came = ""
    for at in range(0, len(ids), cut):
        piece = answer.piece(Delta(tuple(ids[at : at + cut])))
        came += piece.text
        if piece.finish_reason:
            break
    assert (came, piece.finish_reason) == (text, "stop")
