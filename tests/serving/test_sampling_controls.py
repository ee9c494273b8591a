"""Every control of an answer does on a real Triton what it says, through both doors and over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.client import Answer, Client, Door, InvalidRequest
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE, SAMPLING
from hermes_deploy.serving import Server
from tests.serving.artifact import MAX_CONTEXT, MAX_SLOTS
from tests.serving.raw_requests import failure, over_http, send, text

BOTH = pytest.mark.parametrize("door", ["chat", "ensemble"])
MODELS = (ENGINE, ENSEMBLE)
MESSAGES = json.dumps([{"role": "user", "content": "hello"}])

# nothing of the family's recommendations, so that the tokens are those of the logits
GREEDY: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def tokenizer(artifact: Path) -> ChatTokenizer:
    return ChatTokenizer.from_folder(artifact / "hermes_engine/1")


def ids(answer: Answer) -> tuple[int, ...]:
    return answer.choices[0].token_ids


@BOTH
def test_each_token_comes_with_its_log_probability_and_the_likeliest(client: Client, door: Door) -> None:
    answer = client.ask("hello", door=door, max_tokens=20, logprobs=3, **GREEDY)
    assert [token.token_id for token in answer.logprobs] == list(ids(answer))
    for token in answer.logprobs:
        assert len(token.top) == 3
        # greedy: the token is the likeliest
        assert token.top[0] == (token.token_id, token.logprob)
        assert sorted((logprob for _, logprob in token.top), reverse=True) == [logprob for _, logprob in token.top]
        assert sum(np.exp(logprob) for _, logprob in token.top) <= 1.001
    bare = client.ask("hello", door=door, max_tokens=20, logprobs=0, **GREEDY)
    assert [token.top for token in bare.logprobs] == [()] * 20
    np.testing.assert_allclose([t.logprob for t in bare.logprobs], [t.logprob for t in answer.logprobs], atol=1e-3)
    assert client.ask("hello", door=door, max_tokens=2).logprobs == ()


@BOTH
def test_the_prompts_log_probabilities_come_with_its_tokens(
    client: Client, door: Door, tokenizer: ChatTokenizer
) -> None:
    prompt = tokenizer.encode_chat(json.loads(MESSAGES))
    for _ in range(2):  # also when the prompt is in the cache
        answer = client.ask("hello", door=door, max_tokens=1, prompt_logprobs=1, **GREEDY)
        assert [token.token_id for token in answer.prompt_logprobs] == prompt[1:]
        assert all(token.logprob <= token.top[0][1] <= 0 for token in answer.prompt_logprobs)


@BOTH
def test_several_answers_are_several_and_the_first_is_that_of_one(client: Client, door: Door) -> None:
    settings: dict[str, Any] = {"door": door, "max_tokens": 30, "temperature": 1.0, "seed": 5, "logprobs": 1}
    three = client.ask("hello", n=3, prompt_logprobs=0, **settings)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len({choice.text for choice in three.choices}) == 3
    assert three.usage.completion_tokens == 90
    assert all(len(choice.logprobs) == 30 for choice in three.choices)
    assert len(three.prompt_logprobs) == three.usage.prompt_tokens - 1
    assert client.ask("hello", **settings).text == three.text
    again = client.ask("hello", n=3, **settings)
    assert [choice.text for choice in again.choices] == [choice.text for choice in three.choices]


@BOTH
def test_a_stop_text_ends_only_the_answer_that_it_is_in(client: Client, door: Door) -> None:
    settings: dict[str, Any] = {"door": door, "max_tokens": 40, "temperature": 1.0, "seed": 5}
    one, two = client.ask("hello", n=2, **settings).choices
    stop = next(two.text[at : at + 2] for at in range(5, 30) if two.text[at : at + 2] not in one.text)
    first, second = client.ask("hello", n=2, stop=stop, **settings).choices
    assert (first.text, first.finish_reason) == (one.text, "length")
    assert (second.text, second.finish_reason) == (two.text[: two.text.index(stop)], "stop")


@BOTH
def test_more_answers_than_slots_are_refused_with_how_many_there_are(client: Client, door: Door) -> None:
    with pytest.raises(InvalidRequest, match=f"n is {MAX_SLOTS + 1}; this server has {MAX_SLOTS} slots"):
        client.ask("hello", door=door, n=MAX_SLOTS + 1)


def test_cancelling_several_answers_frees_all_their_slots(client: Client) -> None:
    with client.stream("hello", n=MAX_SLOTS, max_tokens=MAX_CONTEXT, temperature=1.0) as stream:
        seen = {next(stream).index for _ in range(50)}
    assert seen == set(range(MAX_SLOTS))  # none is behind the others
    assert len(client.ask("hello", n=MAX_SLOTS, max_tokens=2, timeout=30).choices) == MAX_SLOTS


@BOTH
def test_stop_token_ids_end_the_answer_but_not_before_min_tokens(client: Client, door: Door) -> None:
    free = client.ask("hello", door=door, max_tokens=40, **GREEDY)
    stop = ids(free)[7]
    at = ids(free).index(stop)
    answer = client.ask("hello", door=door, max_tokens=40, stop_token_ids=[stop], ignore_eos=True, **GREEDY)
    assert (ids(answer), answer.finish_reason) == (ids(free)[:at], "stop")
    later = client.ask("hello", door=door, max_tokens=40, stop_token_ids=[stop], min_tokens=at + 5, **GREEDY)
    assert len(ids(later)) >= at + 5
    assert stop not in ids(later)[: at + 5]


@BOTH
def test_a_bad_word_never_comes(client: Client, door: Door) -> None:
    free = client.ask("hello", door=door, max_tokens=40, **GREEDY).text
    word = next(c for c in free if c.isascii() and c.isprintable() and c != " ")
    assert word not in client.ask("hello", door=door, max_tokens=40, bad_words=word, **GREEDY).text


@BOTH
def test_a_bias_makes_a_token_certain_or_impossible(client: Client, door: Door) -> None:
    assert ids(client.ask("hello", door=door, max_tokens=5, logit_bias={77: 100}, **GREEDY)) == (77,) * 5
    first = ids(client.ask("hello", door=door, max_tokens=1, **GREEDY))[0]
    assert ids(client.ask("hello", door=door, max_tokens=1, logit_bias={first: -100}, **GREEDY)) != (first,)


@BOTH
@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_a_penalty_makes_what_was_said_less_likely(client: Client, door: Door, penalty: str) -> None:
    favoured: dict[str, Any] = {"logit_bias": {77: 1.0}, "door": door, "max_tokens": 60, "logprobs": 0}
    plain = client.ask("hello", **favoured, **GREEDY)
    punished = client.ask("hello", **favoured, **{**GREEDY, penalty: 2.0})
    assert len(set(ids(punished))) > len(set(ids(plain)))


@BOTH
def test_limits_that_leave_one_token_are_greedy(client: Client, door: Door) -> None:
    drawn: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 30, "repetition_penalty": 1.0, "door": door}
    greedy = ids(client.ask("hello", door=door, max_tokens=30, **GREEDY))
    for limit in ({"min_p": 1.0}, {"top_k": 1}, {"top_p": 1e-6}):
        assert ids(client.ask("hello", **drawn, **limit)) == greedy
    free = ids(client.ask("hello", **drawn))
    assert free != greedy
    assert ids(client.ask("hello", **drawn, typical_p=0.2)) != free


def test_a_prompt_that_was_read_before_is_told_as_cached(client: Client) -> None:
    question = "what is already in the cache need not be read again"
    client.ask(question, max_tokens=2)
    usage = client.ask(question, max_tokens=2).usage
    assert 0 < usage.cached_tokens < usage.prompt_tokens


def test_a_deadline_ends_the_request_on_both_doors(raw: triton.InferenceServerClient) -> None:
    for model in MODELS:
        pieces = send(
            raw,
            model,
            messages=text(MESSAGES.encode()),
            max_tokens=np.array([MAX_CONTEXT], np.int32),
            timeout_ms=np.array([200], np.int32),
        )
        assert (pieces[-1]["finish_reason"][0], pieces[-1]["error_code"][0]) == (b"error", b"DEADLINE_EXCEEDED")


def test_max_tokens_beyond_the_context_is_bounded_by_it(client: Client) -> None:
    prompt = "x" * (MAX_CONTEXT - 100)
    answer = client.ask(prompt, max_tokens=2**31 - 1, timeout=60)
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == MAX_CONTEXT


EVERYTHING: dict[str, Any] = {
    "max_tokens": 6,
    "min_tokens": 2,
    "temperature": 0.7,
    "top_k": 50,
    "top_p": 0.9,
    "min_p": 0.01,
    "typical_p": 0.95,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "seed": 7,
    "n": 2,
    "stop": ["\u0001\u0002", "\u0003"],
    "stop_token_ids": [5, 6],
    "ignore_eos": True,
    "bad_words": ["dog", "cat"],
    "logit_bias_ids": [7, 8],
    "logit_bias_values": [-5, 0.5],
    "logprobs": 2,
    "prompt_logprobs": 0,
    "priority": 3,
    "client": "alice",
    "timeout_ms": 60000,
}


def test_every_control_can_be_sent_over_http(server: Server) -> None:
    assert set(EVERYTHING) == {tensor.name for tensor in SAMPLING}
    for model in MODELS:
        status, events = over_http(server, model, {"messages": MESSAGES, **EVERYTHING})
        assert status == 200, events
        assert sorted(event.get("index", 0) for event in events if event["finish_reason"]) == [0, 1]
        first = next(event for event in events if "index" not in event)
        assert len(first["prompt_token_logprobs"]) == first["prompt_tokens"] - 1
        tokens = first["token_ids"] if isinstance(first["token_ids"], list) else [first["token_ids"]]
        assert len(first["top_logprobs"]) == 2 * len(tokens)


def test_one_element_of_a_list_can_be_sent_over_http_as_it_is(server: Server) -> None:
    body = {"messages": MESSAGES, "max_tokens": 3, "stop": "\u0001", "stop_token_ids": 5, "ignore_eos": False}
    for model in MODELS:
        assert over_http(server, model, body)[0] == 200


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"min_tokens": 7, "max_tokens": 6}, "min_tokens is 7; allowed is 0 to max_tokens, which is 6"),
        ({"min_p": -0.5}, "min_p is -0.5; allowed is 0"),
        ({"typical_p": 0}, "typical_p is 0.0; allowed is more than 0"),
        ({"repetition_penalty": 11}, "repetition_penalty is 11.0; allowed is more than 0"),
        ({"presence_penalty": 3}, "presence_penalty is 3.0; allowed is -2 to 2"),
        ({"frequency_penalty": 3}, "frequency_penalty is 3.0; allowed is -2 to 2"),
        ({"n": 0}, "n is 0; this server has 4 slots"),
        ({"logprobs": 21}, "logprobs is 21; allowed is 0 to 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1; allowed is 0 to 20"),
        ({"priority": 101}, "priority is 101; allowed is -100 to 100"),
        ({"timeout_ms": 0}, "timeout_ms is 0; allowed is 1 or more"),
        ({"stop_token_ids": [5000]}, "5000; this model has ids 0 to"),
        ({"stop_token_ids": [-1]}, "-1; this model has ids 0 to"),
        ({"logit_bias_ids": [5000], "logit_bias_values": [1]}, "5000; this model has ids 0 to"),
        ({"logit_bias_ids": [5, 6], "logit_bias_values": [1]}, "has 2 elements and logit_bias_values 1; give as many"),
        ({"bad_words": [""]}, "bad word '' has 0 characters"),
        ({"stop": ["x"] * 10_000}, "stop has 10000 texts; at most 16"),
    ],
)
def test_what_is_not_allowed_is_refused_with_what_was_found(server: Server, wrong: dict[str, Any], words: str) -> None:
    for model in MODELS:
        status, events = over_http(server, model, {"messages": MESSAGES, **wrong})
        assert (status, words in events[0]["error"]) == (400, True), events


def test_each_control_of_another_dtype_or_shape_is_refused_by_its_name(raw: triton.InferenceServerClient) -> None:
    messages = text(MESSAGES.encode())
    for tensor in SAMPLING:
        wrong = [np.zeros([1], np.int16), np.zeros([1, 1], np.int32 if tensor.dtype == "INT32" else np.int16)]
        for array in wrong:
            with pytest.raises(InferenceServerException, match=tensor.name):
                send(raw, ENGINE, messages=messages, **{tensor.name: array})


def test_over_int32_is_refused(server: Server) -> None:
    for model in MODELS:
        status, events = over_http(server, model, {"messages": MESSAGES, "max_tokens": 2**31})
        assert status == 400, events


def test_the_id_door_takes_them_too(raw: triton.InferenceServerClient, tokenizer: ChatTokenizer) -> None:
    prompt = np.array(tokenizer.encode_chat(json.loads(MESSAGES)), np.int64)
    pieces = send(raw, ENGINE, input_ids=prompt, n=np.array([2], np.int32), max_tokens=np.array([3], np.int32))
    assert {int(piece["index"][0]) if "index" in piece else 0 for piece in pieces} == {0, 1}
    code, message = failure(raw, ENGINE, input_ids=prompt, n=np.array([9], np.int32))
    assert (code, "slots" in message) == ("INVALID_ARGUMENT", True)
