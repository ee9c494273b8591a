"""What goes on the wire, and what is refused before anything does."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest

from hermes_deploy.client import MAX_MESSAGE_BYTES, Client, InvalidRequest, Message, Sampling, SamplingOptions
from hermes_deploy.client.wire import decode, encode
from hermes_deploy.protocol import tensors
from tests.client.fake_triton import FakeTriton, inputs_of, messages_of


def test_a_bare_question_sends_one_message_and_leaves_sampling_to_the_server(
    triton: FakeTriton, client: Client
) -> None:
    client.ask("Bonjour, ça va ? 🙂")
    request = triton.requests[0]
    assert request.model_name == "hermes_engine"
    assert len(request.id) == 32
    assert list(inputs_of(request)) == ["messages", "cancel_key", "lease_ms"]
    assert inputs_of(request)["messages"][:2] == ("BYTES", [1])
    assert messages_of(request) == [{"role": "user", "content": "Bonjour, ça va ? 🙂"}]


def test_every_option_arrives_as_its_tensor(triton: FakeTriton, client: Client) -> None:
    client.ask(
        [Message("user", "a"), {"role": "assistant", "content": "b"}, Message("user", "c")],
        system="be brief",
        max_tokens=7,
        temperature=0.5,
        top_p=0.25,
        top_k=40,
        seed=2**64 - 1,
        stop=["é", "END"],
        door="ensemble",
    )
    request = triton.requests[0]
    assert request.model_name == "hermes"
    assert [m["role"] for m in messages_of(request)] == ["system", "user", "assistant", "user"]
    sent = inputs_of(request)
    for other in ("messages", "cancel_key", "lease_ms"):
        del sent[other]
    assert sent == {
        "max_tokens": ("INT32", [1], struct.pack("<i", 7)),
        "temperature": ("FP32", [1], struct.pack("<f", 0.5)),
        "top_p": ("FP32", [1], struct.pack("<f", 0.25)),
        "top_k": ("INT32", [1], struct.pack("<i", 40)),
        "seed": ("UINT64", [1], b"\xff" * 8),
        "stop": ("BYTES", [2], b"\x02\0\0\0\xc3\xa9\x03\0\0\0END"),
    }


def test_a_request_through_the_ensemble_is_held_by_another_to_the_engine(triton: FakeTriton, client: Client) -> None:
    for _ in range(2):
        assert client.ask("?", door="ensemble", request_id="mine").text == "Paris."
    keys = []
    for request, hold in zip(triton.requests, triton.holds, strict=True):
        sent = inputs_of(request)
        assert sent["lease_ms"] == ("INT32", [1], struct.pack("<i", 60_000))
        assert sent["cancel_key"] == ("BYTES", [1], b"\x20\0\0\0" + sent["cancel_key"][2][4:])
        assert inputs_of(hold) == {"hold": sent["cancel_key"]}
        assert (hold.model_name, hold.id) == ("hermes_engine", "mine-hold")
        keys.append(sent["cancel_key"][2])
    assert keys[0] != keys[1]


def test_the_direct_door_needs_no_hold(triton: FakeTriton, client: Client) -> None:
    client.ask("?")
    assert triton.holds == []


def test_every_tensor_of_the_table_can_be_sent(triton: FakeTriton, client: Client) -> None:
    client.ask(
        "?",
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_k=40,
        top_p=0.25,
        min_p=0.125,
        typical_p=0.75,
        repetition_penalty=1.25,
        presence_penalty=-2,
        frequency_penalty=2,
        seed=3,
        n=1,
        stop="END",
        stop_token_ids=[5, 6],
        ignore_eos=True,
        bad_words="é",
        logit_bias={7: -100, 8: 0.5},
        logprobs=0,
        prompt_logprobs=20,
        priority=-1,
        client="alice",
        timeout=1.5,
    )
    sent = inputs_of(triton.requests[0])
    assert set(sent) == {"messages"} | {tensor.name for tensor in (*tensors.SAMPLING, *tensors.LEASE)}
    assert sent["ignore_eos"] == ("BOOL", [1], b"\1")
    assert sent["stop_token_ids"] == ("INT64", [2], struct.pack("<2q", 5, 6))
    assert sent["bad_words"] == ("BYTES", [1], b"\2\0\0\0\xc3\xa9")
    assert sent["logit_bias_ids"] == ("INT64", [2], struct.pack("<2q", 7, 8))
    assert sent["logit_bias_values"] == ("FP32", [2], struct.pack("<2f", -100, 0.5))
    assert sent["client"] == ("BYTES", [1], b"\5\0\0\0alice")
    assert sent["logprobs"] == ("INT32", [1], struct.pack("<i", 0))
    assert sent["timeout_ms"] == ("INT32", [1], struct.pack("<i", 1500))


def test_the_options_of_a_call_are_the_fields_of_the_sampling_record() -> None:
    assert list(SamplingOptions.__annotations__) == list(Sampling.__dataclass_fields__)


def test_a_misspelt_option_is_refused(triton: FakeTriton, client: Client) -> None:
    with pytest.raises(TypeError, match="max_token"):
        client.ask("?", max_token=5)  # type: ignore[call-arg]
    assert triton.requests == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 0}, "from 1 to"),
        ({"max_tokens": 2**31}, "from 1 to"),
        ({"max_tokens": 1.5}, "whole number"),
        ({"max_tokens": True}, "whole number"),
        ({"temperature": -0.1}, r"0 \(greedy\) or more"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": 1e300}, "temperature is 1e"),
        ({"temperature": "hot"}, "must be a number"),
        ({"top_p": 0.0}, r"in \(0, 1\]"),
        ({"top_p": 1.01}, r"in \(0, 1\]"),
        ({"top_p": 1e-60}, r"in \(0, 1\]"),
        ({"top_k": -1}, "from 0 to"),
        ({"seed": -1}, "from 0 to"),
        ({"seed": 2**64}, "from 0 to"),
        ({"stop": ""}, "stop text is empty"),
        ({"stop": ["a", 3]}, "stop text is int"),
        ({"stop": 3}, "a text or a list of texts"),
        ({"stop": ["\udc80"]}, "lone surrogate U\\+DC80"),
        ({"min_tokens": -1}, "from 0 to"),
        ({"min_p": 1.5}, "from 0, which is off, to 1"),
        ({"typical_p": 0}, r"in \(0, 1\]"),
        ({"repetition_penalty": 0}, r"in \(0, 10\]"),
        ({"repetition_penalty": math.nan}, r"in \(0, 10\]"),
        ({"presence_penalty": 2.5}, "from -2 to 2"),
        ({"frequency_penalty": -3}, "from -2 to 2"),
        ({"n": 0}, "from 1 to"),
        ({"logprobs": 21}, "from 0 to 20"),
        ({"prompt_logprobs": -1}, "from 0 to 20"),
        ({"priority": 101}, "from -100 to 100"),
        ({"ignore_eos": 1}, "True or False"),
        ({"client": 5}, "client is int"),
        ({"bad_words": [" "]}, "bad word is empty"),
        ({"bad_words": 3}, "a text or a list of texts"),
        ({"stop_token_ids": 3}, "a list of token ids"),
        ({"stop_token_ids": "3"}, "a list of token ids"),
        ({"stop_token_ids": [-1]}, "from 0 to"),
        ({"logit_bias": [5]}, "a mapping of token id to number"),
        ({"logit_bias": ((5, 1, 2),)}, "a mapping of token id to number"),
        ({"logit_bias": {5: 101}}, "logit_bias of token 5 is 101; it must be from -100 to 100"),
        ({"logit_bias": {"5": 1}}, "whole number"),
        ({"system": "\ud83d"}, "lone surrogate U\\+D83D"),
        ({"door": "back"}, "doors are: chat, ensemble"),
        ({"timeout": 0}, "more than 0"),
        ({"timeout": math.inf}, "more than 0"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed_and_nothing_is_sent(
    triton: FakeTriton, client: Client, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        client.ask("?", **options)
    assert triton.requests == []


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "at least one"),
        (b"bytes", "takes a text, a list of messages or a RawPrompt"),
        (["text"], "message 0 is str"),
        ([{"role": "user"}], "keys role; it must have role and content"),
        ([{"role": "user", "content": "a", "name": "b"}], "nothing else"),
        ([{"role": "tool", "content": "a"}], "roles are: system, user, assistant"),
        ([{"role": "user", "content": None}], "must be a text"),
        ("half \ud83d", "at position 5"),
    ],
)
def test_a_wrong_prompt_is_refused_with_what_is_allowed(client: Client, prompt: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        client.ask(prompt)


def test_two_system_messages_are_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="give one of the two"):
        client.ask([Message("system", "a"), Message("user", "b")], system="c")


def test_a_prompt_larger_than_a_message_is_refused_here(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="16,777,216 can be sent"):
        client.ask("x" * MAX_MESSAGE_BYTES)


@pytest.mark.parametrize("url", ["http://localhost:8001", "localhost", ":8001", "localhost:", "h:0", "h:65536", "h:x"])
def test_an_address_that_is_not_host_and_port_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="HOST:PORT"):
        Client(url)


def test_a_closed_client_says_so(triton: FakeTriton) -> None:
    with Client(triton.url) as client:
        client.ask("?")
    with pytest.raises(InvalidRequest, match="closed"):
        client.ask("?")
    with pytest.raises(InvalidRequest, match="closed"):
        client.ready()


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("BYTES", [b"", b"abc", "é".encode()]),
        ("BOOL", [True, False]),
        ("INT32", [-(2**31), 2**31 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("UINT64", [0, 2**64 - 1]),
        ("FP32", [0.5, -1.0]),
    ],
)
def test_tensors_are_laid_out_as_tritons_own_client_does(dtype: Any, values: list[Any]) -> None:
    import numpy as np
    from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

    array = np.array(values, dtype=np.object_ if dtype == "BYTES" else triton_to_np_dtype(dtype))
    theirs = serialize_byte_tensor(array).item() if dtype == "BYTES" else array.tobytes()
    ours = encode(tensors.Tensor("x", dtype, (-1,), ""), values)
    assert ours == theirs
    assert decode(dtype, ours) == values
