"""Streaming text: however ids are cut into pieces, the pieces together are the decoded text."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.chat.token_bytes import read_token_bytes
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.errors import CheckpointError
from tests.chat.conftest import MISTRAL_DATA
from tests.chat.corpus import CORPUS

TOKENIZERS = ["smollm2", "mistral_v1", "tekken"]


def stream(tokenizer: ChatTokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    edges = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    pieces = [detokenizer.push(ids[a:b]) for a, b in pairwise(edges)]
    return [*pieces, detokenizer.flush()]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> ChatTokenizer:
    found: ChatTokenizer = request.getfixturevalue(request.param)
    return found


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_pieces_together_equal_decoding_at_once(data: st.DataObject, request: pytest.FixtureRequest) -> None:
    tokenizer: ChatTokenizer = request.getfixturevalue(data.draw(st.sampled_from(TOKENIZERS)))
    ids = data.draw(
        st.one_of(
            st.lists(st.integers(-2, tokenizer.vocab_size + 2), max_size=40),
            st.lists(st.integers(0, 300), max_size=40),
            st.text(max_size=40).map(tokenizer.encode),
        )
    )
    cuts = data.draw(st.lists(st.integers(0, 100), max_size=8))
    assert "".join(stream(tokenizer, ids, cuts)) == tokenizer.decode(ids)


def test_one_token_at_a_time_equals_the_tokenizers_library_on_byte_level_models(
    smollm2: ChatTokenizer, demo: Checkpoint
) -> None:
    reference = Tokenizer.from_buffer(demo.tokenizer.tokenizer_json)
    rng = random.Random(7)
    ids_of = [smollm2.encode(text) for text in CORPUS]
    ids_of += [[rng.randrange(smollm2.vocab_size) for _ in range(30)] for _ in range(200)]
    for ids in ids_of:
        assert "".join(stream(smollm2, ids, list(range(len(ids))))) == reference.decode(ids, skip_special_tokens=True)


def test_mistral_v1_text_equals_sentencepiece_even_around_broken_bytes(mistral_v1: ChatTokenizer) -> None:
    original = sentencepiece.SentencePieceProcessor(str(MISTRAL_DATA / "tokenizer.model.v1"))
    for text in CORPUS:
        ids = original.encode(text)
        assert "".join(stream(mistral_v1, ids, list(range(len(ids))))) == original.decode(ids), text
    byte = {i: original.piece_to_id(f"<0x{i:02X}>") for i in range(256)}
    broken = [byte[0xFF], *(byte[b] for b in "漢".encode()), byte[0x80], original.piece_to_id("▁ok")]
    assert mistral_v1.decode(broken) == original.decode(broken) == "\ufffd漢\ufffd ok"


def test_an_unfinished_character_is_held_back_until_it_is_whole(smollm2: ChatTokenizer) -> None:
    ids = smollm2.encode("a😀b")
    detokenizer = smollm2.detokenizer()
    pieces = [detokenizer.push([i]) for i in ids]
    assert "".join(pieces) == "a😀b"
    assert "\ufffd" not in "".join(pieces)
    assert "" in pieces, "the emoji takes several tokens, so some of them show nothing"


def test_an_answer_that_ends_inside_a_character_says_so_once(smollm2: ChatTokenizer) -> None:
    ids = smollm2.encode("😀")
    detokenizer = smollm2.detokenizer()
    assert detokenizer.push(ids[:-1]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_the_space_before_the_first_word_is_dropped_where_the_tokenizer_added_it(mistral_v1: ChatTokenizer) -> None:
    detokenizer = mistral_v1.detokenizer()
    words = mistral_v1.encode("Paris is")
    assert [detokenizer.push([i]) for i in words] == ["Paris", " is"]


def test_special_tokens_have_no_text(smollm2: ChatTokenizer) -> None:
    assert smollm2.decode(smollm2.encode("<|im_start|>a<|im_end|>")) == "a"


def test_a_long_answer_costs_the_same_for_each_token(tokenizer: ChatTokenizer) -> None:
    # State must not grow with the answer: nothing but the unfinished character and one flag is kept.
    detokenizer = tokenizer.detokenizer()
    ids = tokenizer.encode("word " * 2000)
    assert "".join(detokenizer.push([i]) for i in ids) == "word " * 2000
    assert detokenizer._decoder.getstate()[0] == b""


def test_another_kind_of_decoder_is_refused_rather_than_guessed() -> None:
    data = {"model": {"vocab": {"a": 0}}, "added_tokens": [], "decoder": {"type": "WordPiece"}}
    with pytest.raises(CheckpointError, match="WordPiece; decoders that are known"):
        read_token_bytes(json.dumps(data).encode())
