"""Folders in which Mistral's own tokenizer files take the place of tokenizer.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.errors import CheckpointError
from tests.chat.conftest import MISTRAL_DATA
from tests.checkpoints.conftest import edit_json
from tests.fixtures.tiny import make_mistral


@pytest.fixture
def hermes(tmp_path: Path) -> Path:
    """As Nous-Hermes-2-Mistral was laid out: SentencePiece model plus two ChatML tokens, no template."""
    folder = make_mistral(tmp_path / "hermes", vocab_size=32002, num_hidden_layers=1)
    (folder / "tokenizer.json").unlink()
    shutil.copy(MISTRAL_DATA / "tokenizer.model.v1", folder / "tokenizer.model")
    edit_json(folder / "added_tokens.json", **{"<|im_end|>": 32000, "<|im_start|>": 32001})
    edit_json(folder / "tokenizer_config.json", bos_token="<s>", eos_token="<|im_end|>", chat_template=...)
    edit_json(folder / "generation_config.json", eos_token_id=32000)
    edit_json(folder / "config.json", eos_token_id=32000)
    return folder


def test_hermes_chats_in_chatml_with_the_pieces_of_mistral(hermes: Path) -> None:
    checkpoint = open_checkpoint(str(hermes))
    tokenizer = ChatTokenizer(checkpoint.tokenizer)
    ids = tokenizer.encode_chat([{"role": "user", "content": "Où est Paris ?"}])
    original = sentencepiece.SentencePieceProcessor(str(hermes / "tokenizer.model"))
    expected = [32001, *original.encode("user\nOù est Paris ?"), 32000, *original.encode("\n"), 32001]
    assert ids == [*expected, *original.encode("assistant\n")]
    assert (checkpoint.family, checkpoint.tokenizer.stop_ids) == ("chatml", (2, 32000))


def test_added_tokens_may_stand_in_the_tokenizer_config(hermes: Path) -> None:
    expected = open_checkpoint(str(hermes)).tokenizer.tokenizer_json
    (hermes / "added_tokens.json").unlink()
    decoder = {
        "32000": {"content": "<|im_end|>", "special": True},
        "32001": {"content": "<|im_start|>", "special": True},
    }
    edit_json(hermes / "tokenizer_config.json", added_tokens_decoder=decoder)
    assert open_checkpoint(str(hermes)).tokenizer.tokenizer_json == expected


def test_an_added_token_that_takes_the_id_of_another_is_refused(hermes: Path) -> None:
    edit_json(hermes / "added_tokens.json", **{"<|im_end|>": 31999})
    with pytest.raises(CheckpointError, match=r"id 31999 is .* in the tokenizer, '<\|im_end\|>' among added tokens"):
        open_checkpoint(str(hermes))


@pytest.mark.parametrize("keep", [0, 1, 100, 200_000])
def test_a_sentencepiece_file_that_is_cut_off_is_refused(keep: int, hermes: Path) -> None:
    (hermes / "tokenizer.model").write_bytes((hermes / "tokenizer.model").read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a SentencePiece model that can be used"):
        open_checkpoint(str(hermes))


def test_a_sentencepiece_model_of_another_type_is_refused(hermes: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the quick brown fox\njumps over the lazy dog\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "unigram"), vocab_size=30, minloglevel=2
    )
    shutil.copy(tmp_path / "unigram.model", hermes / "tokenizer.model")
    with pytest.raises(CheckpointError, match="not of type BPE with byte fallback"):
        open_checkpoint(str(hermes))


def test_a_tekken_folder_is_read_and_its_control_tokens_are_known(tmp_path: Path) -> None:
    folder = make_mistral(tmp_path / "nemo", vocab_size=131072, num_hidden_layers=1, hidden_size=8, head_dim=2)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    edit_json(folder / "generation_config.json", eos_token_id=2)
    edit_json(folder / "config.json", eos_token_id=2)
    shutil.copy(MISTRAL_DATA / "tekken_240911.json", folder / "tekken.json")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}[INST]{{ messages[0].content }}[/INST]")
    checkpoint = open_checkpoint(str(folder))
    tokenizer = ChatTokenizer(checkpoint.tokenizer)
    assert tokenizer.encode_chat([{"role": "user", "content": "Bonjour 123"}])[:2] == [1, 3]
    assert checkpoint.tokenizer.stop_ids == (2,)


@pytest.mark.parametrize("content", [b"{}", b"[1]", json.dumps({"config": {}, "vocab": []}).encode()])
def test_a_damaged_tekken_file_is_refused(content: bytes, hermes: Path) -> None:
    (hermes / "tokenizer.model").unlink()
    (hermes / "tekken.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tekken\.json is not a Tekken tokenizer that can be used"):
        open_checkpoint(str(hermes))
