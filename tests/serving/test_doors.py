"""Both doors of a real Triton stream the same answer, several at once, and say what is wrong with a request."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.client import Client, ContextTooLong, InvalidRequest
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE
from hermes_deploy.serving import Server
from tests.serving.artifact import MAX_CONTEXT, MAX_SLOTS
from tests.serving.raw_requests import failure, over_http, send, text

DOORS = ("chat", "ensemble")
MODELS = (ENGINE, ENSEMBLE)
CHAT = [{"role": "user", "content": "hello"}]


def test_both_doors_stream_the_same_answer(client: Client) -> None:
    answers = {door: client.ask("hello", door=door, max_tokens=40, temperature=0.0) for door in DOORS}
    assert answers["chat"].text == answers["ensemble"].text != ""
    assert answers["chat"].usage.prompt_tokens == answers["ensemble"].usage.prompt_tokens
    assert answers["chat"].usage.completion_tokens == answers["ensemble"].usage.completion_tokens == 40
    assert answers["chat"].finish_reason == "length"


def test_an_answer_comes_in_pieces_while_it_is_generated(client: Client) -> None:
    for door in DOORS:
        with client.stream("hello", door=door, max_tokens=8000, temperature=0.0) as stream:
            assert len(list(stream)) > 10


def test_every_piece_carries_its_ids_and_they_decode_to_its_text(
    raw: triton.InferenceServerClient, artifact: Path
) -> None:
    tokenizer = ChatTokenizer.from_folder(artifact / "hermes_engine/1")
    for model in MODELS:
        pieces = send(
            raw,
            model,
            messages=text(json.dumps(CHAT).encode()),
            max_tokens=np.array([60], np.int32),
            temperature=np.array([0], np.float32),
        )
        ids = np.concatenate([piece["token_ids"] for piece in pieces])
        assert b"".join(piece["text"][0] for piece in pieces).decode() == tokenizer.decode(ids.tolist())
        assert len(ids) == 60
        assert pieces[-1]["completion_tokens"].tolist() == [60]
        assert pieces[-1]["prompt_tokens"].tolist() == [len(tokenizer.encode_chat(CHAT))]
        assert [piece["finish_reason"][0] for piece in pieces[:-1]] == [b""] * (len(pieces) - 1)


def test_the_id_door_answers_like_the_chat_door(raw: triton.InferenceServerClient, artifact: Path) -> None:
    ids = ChatTokenizer.from_folder(artifact / "hermes_engine/1").encode_chat(CHAT)
    sampling = {"max_tokens": np.array([30], np.int32), "temperature": np.array([0], np.float32)}
    answers = [
        send(raw, ENGINE, messages=text(json.dumps(CHAT).encode()), **sampling),
        send(raw, ENGINE, input_ids=np.array(ids, np.int64), **sampling),
    ]
    one, two = ([int(i) for piece in pieces for i in piece["token_ids"]] for pieces in answers)
    assert one == two


def test_generate_stream_answers_over_http(server: Server) -> None:
    for model in MODELS:
        status, events = over_http(server, model, {"messages": json.dumps(CHAT), "max_tokens": 20, "temperature": 0.0})
        assert status == 200
        assert events[-1]["finish_reason"] == "length"
        assert events[-1]["completion_tokens"] == 20


def test_many_chats_at_once_get_the_answers_that_each_gets_alone(client: Client) -> None:
    def answer(number: int) -> str:
        door = DOORS[number % 2]
        return client.ask(f"chat number {number}", door=door, max_tokens=30, temperature=0.8, seed=number).text  # type: ignore[arg-type]

    numbers = range(3 * MAX_SLOTS)
    alone = [answer(number) for number in numbers]
    with ThreadPoolExecutor(len(numbers)) as threads:
        together = list(threads.map(answer, numbers))
    assert together == alone
    assert len(set(alone)) == len(alone)


def test_a_stop_text_ends_the_answer_before_it_on_both_doors(client: Client) -> None:
    whole = client.ask("hello", max_tokens=200, temperature=0.0).text
    stop = whole[20:23]
    for door in DOORS:
        answer = client.ask("hello", door=door, max_tokens=200, temperature=0.0, stop=stop)
        assert answer.text == whole[: whole.index(stop)]
        assert answer.finish_reason == "stop"


def test_cancelling_frees_the_slot_for_the_next(client: Client) -> None:
    with ExitStack() as stack:
        endless = [
            stack.enter_context(client.stream(f"{n}", max_tokens=MAX_CONTEXT, temperature=0.0))
            for n in range(MAX_SLOTS)
        ]
        for stream in endless:
            next(stream)
        endless[0].cancel()
        assert client.ask("next", max_tokens=2, temperature=0.0).usage.completion_tokens == 2
        # it was the cancelled one that made room: the others are still at it
        assert all(next(stream).finish_reason is None for stream in endless[1:])


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(client: Client) -> None:
    for door in DOORS:
        with pytest.raises(ContextTooLong, match=rf"the context of this server is {MAX_CONTEXT} tokens"):
            client.ask("x" * MAX_CONTEXT, door=door)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (b'[{"role": "user", "content": "\xff\xfe"}]', "messages is not UTF-8 text"),
        (b"[", "not valid JSON"),
        (b"[]", "messages is empty"),
        (b'[{"role": "king", "content": "hi"}]', "role is 'king'"),
    ],
)
def test_messages_that_are_none_are_refused_at_both_doors(
    raw: triton.InferenceServerClient, messages: bytes, message: str
) -> None:
    for model in MODELS:
        code, found = failure(raw, model, messages=text(messages))
        assert code == "INVALID_ARGUMENT"
        assert message in found


def test_sampling_values_out_of_range_are_refused(server: Server) -> None:
    for name, value in (("temperature", -1.0), ("top_p", 0.0), ("top_k", -1), ("max_tokens", 0)):
        for model in MODELS:
            status, events = over_http(server, model, {"messages": json.dumps(CHAT), name: value})
            assert status == 400
            assert f"{name} is {value}" in events[0]["error"]


def test_a_text_that_is_not_utf_8_is_refused(raw: triton.InferenceServerClient) -> None:
    messages = text(json.dumps(CHAT).encode())
    for name in ("stop", "bad_words", "client"):
        code, message = failure(raw, ENGINE, messages=messages, **{name: text(b"\xff")})
        assert (code, f"a text of input {name} is not UTF-8" in message) == ("INVALID_ARGUMENT", True)


def test_a_tensor_of_another_dtype_or_shape_is_refused(raw: triton.InferenceServerClient) -> None:
    messages = text(json.dumps(CHAT).encode())
    for model in MODELS:
        for wrong in (np.array([5], np.int64), np.array([[5]], np.int32), np.array([5, 6], np.int32)):
            with pytest.raises(InferenceServerException, match="max_tokens"):
                send(raw, model, messages=messages, max_tokens=wrong)
        with pytest.raises(InferenceServerException, match="messages"):
            send(raw, model, messages=np.array([7], np.int64))


def test_ids_outside_the_vocabulary_are_refused(raw: triton.InferenceServerClient) -> None:
    assert "token id 5000" in failure(raw, ENGINE, input_ids=np.array([5000], np.int64))[1]
    assert "no tokens" in failure(raw, ENGINE, input_ids=np.array([], np.int64))[1]


def test_after_all_of_that_the_server_answers_as_before(client: Client) -> None:
    with pytest.raises(InvalidRequest):
        client.ask("x" * MAX_CONTEXT)
    assert client.ask("hello", max_tokens=5, temperature=0.0).usage.completion_tokens == 5
