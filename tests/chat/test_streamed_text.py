"""However an answer is cut into pieces, its text is exact: that of the originals, and the text that was encoded."""

from __future__ import annotations

import functools
import re
from itertools import pairwise

import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import Tokenizer

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from tests.chat.conftest import MISTRAL_DATA

# several characters each, or several bytes, or several tokens
GRAPHEMES = (
    "👩‍👩‍👧‍👦",
    "👍🏽",
    "🇫🇷",
    "1️⃣",
    "🏴‍☠️",
    "e\u0301",
    "n\u0303\u0323",
    "ŝ\u0331",
    "नमस्ते",
    "שָׁלוֹם",
    "漢字",
    "日本語のテキスト",
    "한국어",
    "𠮷𩸽",
    "𝒜𝓑",
    " ",
    "   ",
    "\n",
    "\n  ",
    "\t",
    " word",
    "  two",
    "été",
    "naïve",
    "\u200d",
    "\ufeff",
    "\x00",
    "\U0010ffff",
    "�",
    "a",
    ".",
)
texts = st.lists(st.one_of(st.sampled_from(GRAPHEMES), st.text(max_size=3)), max_size=12).map("".join)
cut_places = st.lists(st.integers(0, 200), max_size=10)


def cut(ids: list[int], places: list[int]) -> list[list[int]]:
    edges = [0, *sorted(place % (len(ids) + 1) for place in places), len(ids)]
    return [ids[start:end] for start, end in pairwise(edges)]


def stream(tokenizer: ChatTokenizer, ids: list[int], places: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    return [*(detokenizer.push(piece) for piece in cut(ids, places)), detokenizer.flush()]


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(["mistral_v1", "tekken"]), text=texts, places=cut_places)
def test_every_text_comes_back_whatever_the_pieces(
    name: str, text: str, places: list[int], request: pytest.FixtureRequest
) -> None:
    tokenizer: ChatTokenizer = request.getfixturevalue(name)
    # SentencePiece reads ▁ as a space; control tokens have no text
    assume("▁" not in text and not tokenizer._tokenizer.forged(text))
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, ids, places)
    assert "".join(pieces) == tokenizer.decode(ids) == text
    # and at every moment what was shown is right: nothing is taken back, nothing is half a character
    shown = ""
    for piece in stream(tokenizer, ids, list(range(len(ids)))):
        shown += piece
        assert text.startswith(shown)


@functools.cache
def letters_of_smollm2(tokenizer: ChatTokenizer) -> frozenset[int]:
    return frozenset(byte for byte in range(256) if bytes([byte]) in tokenizer._token_bytes.pieces)


@settings(max_examples=80, deadline=None)
@given(text=texts, places=cut_places)
def test_the_demos_text_comes_back_too_where_its_vocabulary_has_the_bytes(
    text: str, places: list[int], smollm2: ChatTokenizer
) -> None:
    assume(letters_of_smollm2(smollm2).issuperset(text.encode()))
    assert "".join(stream(smollm2, smollm2.encode(text), places)) == text


@pytest.fixture(scope="module")
def library(demo: Checkpoint) -> Tokenizer:
    return Tokenizer.from_buffer(demo.tokenizer.tokenizer_json)


@settings(max_examples=80, deadline=None)
@given(ids=st.lists(st.integers(0, 49_151), max_size=40), places=cut_places)
def test_any_ids_of_a_byte_level_model_read_as_in_the_tokenizers_library(
    ids: list[int], places: list[int], smollm2: ChatTokenizer, library: Tokenizer
) -> None:
    assert "".join(stream(smollm2, ids, places)) == library.decode(ids, skip_special_tokens=True)


def marked(text: str) -> str:
    return re.sub("\ufffd+", "\ufffd", text)


@pytest.fixture(scope="module")
def original() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(str(MISTRAL_DATA / "tokenizer.model.v1"))


# 3 to 258 are the byte-fallback tokens: here they come in any order, whole characters and broken ones
@settings(max_examples=150, deadline=None)
@given(
    ids=st.lists(st.one_of(st.integers(3, 258), st.integers(1, 31_999), st.sampled_from([28705, 259])), max_size=30),
    places=cut_places,
)
def test_any_ids_of_a_byte_fallback_model_read_as_in_sentencepiece(
    ids: list[int], places: list[int], mistral_v1: ChatTokenizer, original: sentencepiece.SentencePieceProcessor
) -> None:
    # a first space spelled as a byte is kept by SentencePiece and dropped by the file's own decoder, which is followed
    assume(next((i for i in ids if i > 2), 0) != original.piece_to_id("<0x20>"))
    # of a broken character SentencePiece marks every byte; here, as in Unicode's advice, what belongs together
    assert marked("".join(stream(mistral_v1, ids, places))) == marked(original.decode(ids))


@pytest.fixture(scope="module")
def tekkenizer() -> Tekkenizer:
    return Tekkenizer.from_file(MISTRAL_DATA / "tekken_240718.json")


@settings(max_examples=80, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, 1300), st.integers(0, 131_071)), max_size=40), places=cut_places)
def test_any_ids_of_tekken_read_as_in_mistral_common(
    ids: list[int], places: list[int], tekken: ChatTokenizer, tekkenizer: Tekkenizer
) -> None:
    whole = [i for i in ids if i >= tekkenizer.num_special_tokens]
    assert "".join(stream(tekken, ids, places)) == tekkenizer.decode(whole, SpecialTokenPolicy.IGNORE)
