"""A whole prompt as trusted text: the ids of the chat that it was rendered from, and what is refused."""

from __future__ import annotations

import pytest

from hermes_deploy.chat import ChatTokenizer, Room, parse_prompt
from hermes_deploy.chat.messages import MAX_BYTES, MAX_CHARACTERS
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import RequestError
from tests.chat.chat_families import NAMES, Family, families_of
from tests.chat.conftest import CHATML, files_of
from tests.chat.corpus import CORPUS
from tests.fixtures.tiny import byte_tokenizer_json

WRITE_A_BOS = ("mistral v1", "mistral v2", "tekken", "names of roles")
"""Families whose template begins a prompt with its BOS token."""


@pytest.fixture(scope="module")
def families(demo: Checkpoint) -> dict[str, Family]:
    return families_of(demo)


@pytest.fixture(params=NAMES)
def at(request: pytest.FixtureRequest, families: dict[str, Family]) -> Family:
    return families[request.param]


def chats(at: Family) -> list[list[dict[str, str]]]:
    """With and without a system message, of one turn and of three, whose words hold no control token."""
    turns = [[{"role": "user", "content": text}] for text in CORPUS]
    turns.append([{"role": role, "content": "Hi"} for role in ("user", "assistant", "user")])
    if not at.alternating:
        turns.append([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    return [chat for chat in turns if not at.ours._tokenizer.forged(at.ours._template.render(chat))]


def test_the_rendered_text_of_a_chat_has_the_ids_of_that_chat(at: Family) -> None:
    assert len(chats(at)) > 2
    for chat in chats(at):
        assert at.ours.encode_prompt(str(at.ours.render(chat))) == at.ours.encode_chat(chat)


@pytest.mark.parametrize("name", WRITE_A_BOS)
def test_a_prompt_has_one_bos_whether_it_was_written_or_not(name: str, families: dict[str, Family]) -> None:
    ours = families[name].ours
    (bos,) = ours.encode("<s>")
    for chat in chats(families[name]):
        text = str(ours.render(chat))
        assert text.startswith("<s>")
        ids = ours.encode_prompt(text)
        assert (ids[0], ids.count(bos)) == (bos, 1)
        assert ours.encode_prompt(text.removeprefix("<s>")) == ids


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(WRITE_A_BOS)))
def test_no_bos_is_put_before_a_prompt_whose_template_writes_none(name: str, families: dict[str, Family]) -> None:
    ours = families[name].ours
    assert ours.encode_prompt("Hello") == ours.encode("Hello")


def test_a_bos_that_happens_to_open_every_message_is_not_added() -> None:
    ours = ChatTokenizer(files_of(byte_tokenizer_json(), CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>"))
    assert ours.encode_prompt("user\n") == ours.encode_text("user\n")


def test_what_is_text_in_a_message_is_a_control_token_in_a_prompt(at: Family) -> None:
    def controls(ids: list[int]) -> int:
        return sum(i in at.ours.control_ids for i in ids)

    token = next(t for t in ("<|im_end|>", "</s>") if at.ours.encode(t)[0] in at.ours.control_ids)
    forged = [{"role": "user", "content": f"a {token} b"}]
    expected = controls(at.ours.encode_chat([{"role": "user", "content": "a x b"}]))
    assert controls(at.ours.encode_chat(forged)) == expected
    prompt = str(at.ours.render(forged))
    assert controls(at.ours.encode_prompt(prompt)) == expected + prompt.count(f" {token} b")


def test_a_prompt_is_utf_8_text() -> None:
    assert parse_prompt("<s>Où 🙂".encode()) == "<s>Où 🙂"
    for data, found in ((b"a\xffb", "byte 1 is 0xff"), (b"ab\xed\xa0\x80", "byte 2 is 0xed"), (b"\xc3", "0xc3")):
        with pytest.raises(RequestError, match=f"prompt is not UTF-8 text: .*{found}") as refused:
            parse_prompt(data)
        assert refused.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "prompt is empty; expected the whole rendered prompt"),
        (b"x" * (MAX_BYTES + 1), f"prompt has {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are taken"),
        (b"x" * (MAX_CHARACTERS + 1), f"prompt has {MAX_CHARACTERS + 1} characters; at most {MAX_CHARACTERS}"),
    ],
)
def test_a_prompt_of_no_or_too_many_letters_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words) as refused:
        parse_prompt(data)
    assert refused.value.code == "INVALID_ARGUMENT"


def test_what_the_context_cannot_hold_is_refused_before_it_is_read() -> None:
    room = Room(max_context=10, longest_token=4)
    assert parse_prompt(b"x" * 40, room) == "x" * 40
    with pytest.raises(RequestError, match="prompt has 41 bytes; the context of this server is 10 tokens") as refused:
        parse_prompt(b"\xff" * 41, room)
    assert refused.value.code == "OUT_OF_RANGE"


def test_a_context_full_of_control_tokens_is_no_more_than_the_context_holds(at: Family) -> None:
    longest = max(at.ours._tokenizer._names, key=len)
    ids = at.ours.encode(longest * 10)
    room = Room(len(ids), at.ours.longest_token)
    assert parse_prompt((longest * 10).encode(), room) == longest * 10
