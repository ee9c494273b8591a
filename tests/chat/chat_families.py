"""Tokenizers and templates of the kinds that chat models have, each beside the library's own tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import Tokenizer

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.checkpoints.sentencepiece_bpe import added_token
from hermes_deploy.checkpoints.sentencepiece_file import read_sentencepiece
from hermes_deploy.checkpoints.tekken_file import read_tekken
from hermes_deploy.checkpoints.tokenizer_files import TokenizerFiles
from tests.chat.conftest import CHATML, MISTRAL_DATA, files_of
from tests.chat.test_templates import BROAD, MISTRAL_V1, MISTRAL_V2, ZEPHYR
from tests.fixtures.tiny import byte_tokenizer_json

BY_ROLE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' "
    "}}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ c | trim }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
NAMES = (
    "smollm2",
    "hermes",
    "hermes, <|im_start|> not marked",
    "hermes, <|im_start|> normalized",
    "hermes, a space before the first word",
    "mistral v1",
    "mistral v2",
    "tekken",
    "zephyr",
    "names of roles",
    "thinking",
    "many constructs",
    "bytes",
)


@dataclass(frozen=True, repr=False)
class Family:
    """`plain`: the library's own tokenizer, which takes every control token that it finds."""

    ours: ChatTokenizer
    plain: Tokenizer
    template: str
    alternating: bool


def family(files: TokenizerFiles, *, alternating: bool = False) -> Family:
    return Family(ChatTokenizer(files), Tokenizer.from_buffer(files.tokenizer_json), files.chat_template, alternating)


@cache
def mistral_v1() -> dict[str, Any]:
    data = read_sentencepiece(MISTRAL_DATA / "tokenizer.model.v1")
    # as converters do that make a merge of every piece with two known halves; the last piece is a lone letter
    vocab = {text: i for text, i in data["model"]["vocab"].items() if i < 31_999} | {"s>": 31_999}
    merges = [*data["model"]["merges"], ["s", ">"], ["<", "s>"], ["</", "s>"]]
    return {**data, "model": {**data["model"], "vocab": vocab, "merges": merges}}


def mistral(*tokens: dict[str, Any], **changes: Any) -> str:
    """Mistral's first tokenizer and further added tokens."""
    data = mistral_v1()
    return json.dumps({**data, "added_tokens": [*data["added_tokens"], *tokens], **changes})


def first_word_space() -> dict[str, Any]:
    """As in newer conversions: the space before the first word comes from the pre-tokenizer, once a text."""
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return {"normalizer": None, "pre_tokenizer": space}


def families_of(demo: Checkpoint) -> dict[str, Family]:
    """Each of NAMES."""
    end = added_token(32000, "<|im_end|>", special=True)
    start = added_token(32001, "<|im_start|>", special=True)
    unmarked = {**start, "special": False}
    spaced = [
        {**added_token(32000 + i, text, special=True), "rstrip": True, "lstrip": text == "<|end|>"}
        for i, text in enumerate(("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"))
    ]
    thinking = [{**added_token(32002 + i, text, special=False)} for i, text in enumerate(("<think>", "</think>"))]
    tekken = json.dumps(read_tekken(MISTRAL_DATA / "tekken_240718.json"))
    return {
        "smollm2": family(demo.tokenizer),
        "hermes": family(files_of(mistral(end, start))),
        "hermes, <|im_start|> not marked": family(files_of(mistral(end, unmarked))),
        "hermes, <|im_start|> normalized": family(files_of(mistral(end, {**unmarked, "normalized": True}))),
        "hermes, a space before the first word": family(files_of(mistral(end, start, **first_word_space()))),
        "mistral v1": family(files_of(mistral(), MISTRAL_V1), alternating=True),
        "mistral v2": family(files_of(mistral(**first_word_space()), MISTRAL_V2), alternating=True),
        "tekken": family(files_of(tekken, MISTRAL_V2), alternating=True),
        "zephyr": family(files_of(mistral(), ZEPHYR)),
        "names of roles": family(files_of(mistral(*spaced), BY_ROLE)),
        "thinking": family(files_of(mistral(end, start, *thinking), THINKING)),
        "many constructs": family(files_of(byte_tokenizer_json(), BROAD, eos_token="<|im_end|>", bos_token=None)),
        "bytes": family(files_of(byte_tokenizer_json(), CHATML, eos_token="<|im_end|>", bos_token=None)),
    }
