"""The held-out texts that ship: in which languages, how many, and apart from calibration's."""

from __future__ import annotations

import json
import re
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import mistral_common
import pytest

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints.sentencepiece_file import read_sentencepiece
from hermes_deploy.checkpoints.tekken_file import read_tekken
from hermes_deploy.checkpoints.tokenizer_files import TokenizerFiles
from hermes_deploy.families import FAMILIES
from hermes_deploy.quantization import Chat, calibration_chats
from hermes_deploy.verification import heldout_chats
from tests.fixtures.languages import LANGUAGES, looks_like

MISTRAL_DATA = Path(mistral_common.__file__).parent / "data"
WINDOW = 8
POSITIONS = 8000
"""What the gate promises to compare, at least."""


def shipped() -> list[dict[str, Any]]:
    text = (resources.files("hermes_deploy.verification") / "heldout.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def windows(chats: list[Chat]) -> set[tuple[str, ...]]:
    """Every run of WINDOW words; of Chinese and Japanese, which write no spaces, of characters."""
    found: set[tuple[str, ...]] = set()
    for message in (message for chat in chats for message in chat):
        words = re.findall(r"[\u3040-\u30ff\u4e00-\u9fff]|\w+", message["content"].lower())
        found.update(tuple(words[i : i + WINDOW]) for i in range(len(words) - WINDOW + 1))
    return found


def test_calibration_and_heldout_texts_share_no_run_of_words() -> None:
    calibration, heldout = windows(calibration_chats()), windows(heldout_chats())
    assert len(calibration) > 2000 and len(heldout) > 6000
    assert calibration & heldout == set()


def test_no_heldout_text_is_there_twice() -> None:
    chats = heldout_chats()
    assert sum(len(windows([chat])) for chat in chats) == len(windows(chats))


def test_the_eleven_languages_are_there_and_most_is_english() -> None:
    languages = [line["language"] for line in shipped()]
    assert set(languages) == LANGUAGES
    assert 0.5 < languages.count("en") / len(languages) < 0.8


@pytest.mark.parametrize("line", shipped(), ids=lambda line: f"{line['language']}-{line['kind']}")
def test_a_heldout_chat_is_well_formed_and_in_the_language_that_it_names(line: dict[str, Any]) -> None:
    roles = [message["role"] for message in line["messages"]]
    turns = roles[1:] if roles[0] == "system" else roles
    assert turns[0] == "user" and turns[-1] == "assistant"
    assert all(one != other for one, other in pairwise(turns))
    said = " ".join(message["content"] for message in line["messages"])
    assert looks_like(line["language"], said) or line["kind"] == "translation"


def test_most_of_what_is_read_are_answers() -> None:
    said = [message for chat in heldout_chats() for message in chat]
    answers = sum(len(message["content"]) for message in said if message["role"] == "assistant")
    assert answers > 0.75 * sum(len(message["content"]) for message in said)


@pytest.mark.parametrize(
    "vocabulary",
    [
        pytest.param(lambda: read_tekken(MISTRAL_DATA / "tekken_240718.json"), id="Tekken"),
        pytest.param(lambda: read_sentencepiece(MISTRAL_DATA / "tokenizer.model.v1"), id="Mistral v1"),
    ],
)
def test_there_are_enough_positions_for_the_gate_and_no_chat_outweighs_the_rest(vocabulary: Any) -> None:
    files = TokenizerFiles(
        json.dumps(vocabulary()).encode(),
        FAMILIES["chatml"].template,
        bos_token="<s>",
        eos_token="</s>",
        stop_ids=(2,),
    )
    # without the template's marks, which are several tokens each where the vocabulary lacks them
    chats = [[message["content"] for message in chat] for chat in heldout_chats()]
    tokenizer = ChatTokenizer(files)
    lengths = [sum(len(tokenizer.encode(text)) for text in chat) for chat in chats]
    assert len(lengths) >= 45
    assert sum(lengths) >= POSITIONS
    assert max(lengths) < 0.1 * sum(lengths)
