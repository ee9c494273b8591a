"""Token ids equal those of the implementation that each model was trained with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.errors import RequestError
from tests.chat.conftest import MISTRAL_DATA
from tests.chat.corpus import CORPUS

# The originals never read control tokens out of text; a rendered template relies on it that we do.
MISTRAL_CONTROL = {"<s>", "</s>", "<unk>", "[INST] hi [/INST]"}


def test_the_corpus_holds_a_few_hundred_texts() -> None:
    assert len(CORPUS) > 300


def test_smollm2_ids_equal_those_of_llama_cpp(smollm2: ChatTokenizer) -> None:
    golden = json.loads(Path(__file__).with_name("smollm2_golden.json").read_bytes())["ids"]
    assert set(golden) == set(CORPUS), "run make_smollm2_golden again"
    assert {text: smollm2.encode(text) for text in golden} == golden


def test_mistral_v1_ids_equal_those_of_sentencepiece(mistral_v1: ChatTokenizer) -> None:
    original = sentencepiece.SentencePieceProcessor(str(MISTRAL_DATA / "tokenizer.model.v1"))
    texts = [text for text in CORPUS if text not in MISTRAL_CONTROL]
    assert [mistral_v1.encode(text) for text in texts] == original.encode(texts)


def test_tekken_ids_equal_those_of_mistral_common(tekken: ChatTokenizer) -> None:
    original = Tekkenizer.from_file(MISTRAL_DATA / "tekken_240718.json")
    texts = [text for text in CORPUS if text not in MISTRAL_CONTROL]
    assert [tekken.encode(text) for text in texts] == [original.encode(text, bos=False, eos=False) for text in texts]


@pytest.mark.parametrize("name", ["smollm2", "mistral_v1", "tekken"])
def test_decoding_gives_the_text_back(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: ChatTokenizer = request.getfixturevalue(name)
    # SmolLM2 has no token for some bytes, SentencePiece writes its own space sign as a space, and
    # control tokens have no text.
    lossless = [text for text in CORPUS if "▁" not in text and "<" not in text and "[INST]" not in text]
    if name == "smollm2":
        lossless = [text for text in lossless if all(ord(c) < 0x2000 and c >= " " for c in text)]
    assert len(lossless) > 100
    assert [tokenizer.decode(tokenizer.encode(text)) for text in lossless] == lossless


def test_half_a_surrogate_pair_is_refused_by_name(smollm2: ChatTokenizer) -> None:
    with pytest.raises(RequestError, match=r"character 2 is half of a surrogate pair \(U\+D83D\)"):
        smollm2.encode("a \ud83d b")


def test_settings_of_a_training_run_do_not_cut_or_pad_a_prompt() -> None:
    from tests.chat.conftest import files_of
    from tests.fixtures.tiny import byte_tokenizer_json

    data = json.loads(byte_tokenizer_json())
    data["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    assert len(ChatTokenizer(files_of(json.dumps(data))).encode("twelve bytes")) == 12
