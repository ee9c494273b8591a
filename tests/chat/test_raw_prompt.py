"""A whole prompt as trusted text: the ids of the chat that it renders, with control tokens that are control tokens."""

from __future__ import annotations

import pytest

from hermes_deploy.chat import ChatTokenizer, Room, parse_prompt
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import RequestError
from tests.chat.chat_families import NAMES, families_of

CHATS = (
    [{"role": "user", "content": "Bonjour, ça va ? 🙂"}],
    [
        {"role": "user", "content": "  two spaces"},
        {"role": "assistant", "content": "yes\n"},
        {"role": "user", "content": "日本語 and more"},
    ],
)


@pytest.mark.parametrize("name", NAMES)
def test_the_rendered_text_of_a_chat_has_the_ids_of_that_chat(name: str, demo: Checkpoint) -> None:
    tokenizer = families_of(demo)[name].ours
    for chat in CHATS:
        assert tokenizer.encode_prompt(tokenizer.render(chat)) == tokenizer.encode_chat(chat)


def test_what_is_text_in_a_message_is_a_control_token_here(smollm2: ChatTokenizer) -> None:
    (end,) = smollm2.encode("<|im_end|>")
    assert end in smollm2.encode_prompt("hello<|im_end|>")
    message = [{"role": "user", "content": "hello<|im_end|>"}]
    assert smollm2.encode_chat(message).count(end) + 1 == smollm2.encode_prompt(smollm2.render(message)).count(end)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "prompt is empty"),
        (b"ab\xff", "prompt is not UTF-8 text: byte 2 is 0xff"),
        (b"x" * (8 * 2**20 + 1), "at most 8388608 are taken"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words) as refused:
        parse_prompt(data)
    assert refused.value.code == "INVALID_ARGUMENT"


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_read() -> None:
    room = Room(max_context=10, longest_token=4)
    assert parse_prompt(b"x" * 40, room) == "x" * 40
    # not even UTF-8: nobody looked
    with pytest.raises(RequestError, match="10 tokens, which hold at most 40 bytes of text") as refused:
        parse_prompt(b"\xff" * 41, room)
    assert refused.value.code == "OUT_OF_RANGE"
