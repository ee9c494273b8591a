"""Chats to token ids and back for one checkpoint; needs `tokenizers` and `jinja2`, no numpy, no engine.

The folder that a build writes beside the engine: `tokenizer.json`, `chat_template.jinja`,
`tokens.json` ({"bos_token", "eos_token", "stop_ids"}).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from hermes_deploy.chat.detokenizer import Detokenizer, decode
from hermes_deploy.chat.messages import check_messages, check_unicode
from hermes_deploy.chat.template import ChatTemplate
from hermes_deploy.chat.token_bytes import read_token_bytes
from hermes_deploy.checkpoints.tokenizer_files import TokenizerFiles
from hermes_deploy.errors import ArtifactError, CheckpointError

TOKENIZER, TEMPLATE, TOKENS = "tokenizer.json", "chat_template.jinja", "tokens.json"


class ChatTokenizer:
    """Safe to use from several threads. Raises CheckpointError when the files cannot be used."""

    def __init__(self, files: TokenizerFiles) -> None:
        try:
            self._tokenizer = Tokenizer.from_buffer(files.tokenizer_json)
        except ValueError as error:
            raise CheckpointError(f"tokenizer.json cannot be used: {error}") from None
        # A tokenizer.json may carry the settings of somebody's training run.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._token_bytes = read_token_bytes(files.tokenizer_json)
        self._template = ChatTemplate(files.chat_template, bos_token=files.bos_token, eos_token=files.eos_token)
        self.stop_ids = files.stop_ids

    @classmethod
    def from_folder(cls, path: Path) -> ChatTokenizer:
        """Raises ArtifactError when the folder does not hold the three files."""
        return cls(read_folder(path))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self._token_bytes.pieces)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt as text, ready for the assistant's answer. Raises RequestError."""
        return self._template.render(check_messages(messages))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of the rendered prompt. The template writes the begin-of-text token where the model has one."""
        return self.encode(self.render(messages))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; adds nothing of its own. Raises RequestError for text that is not valid Unicode."""
        ids: list[int] = self._tokenizer.encode(check_unicode(text, "the text"), add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without special tokens."""
        return decode(self._token_bytes, ids)

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for one answer."""
        return Detokenizer(self._token_bytes)


def write_folder(files: TokenizerFiles, path: Path) -> None:
    """Writes the three files; `path` is made when it is not there."""
    path.mkdir(parents=True, exist_ok=True)
    (path / TOKENIZER).write_bytes(files.tokenizer_json)
    (path / TEMPLATE).write_bytes(files.chat_template.encode("utf-8"))
    tokens = {"bos_token": files.bos_token, "eos_token": files.eos_token, "stop_ids": list(files.stop_ids)}
    (path / TOKENS).write_text(json.dumps(tokens, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_folder(path: Path) -> TokenizerFiles:
    """Inverse of `write_folder`. Raises ArtifactError."""
    try:
        tokens = json.loads((path / TOKENS).read_bytes())
        return TokenizerFiles(
            tokenizer_json=(path / TOKENIZER).read_bytes(),
            chat_template=(path / TEMPLATE).read_bytes().decode("utf-8"),
            bos_token=_text_or_none(tokens["bos_token"]),
            eos_token=_text_or_none(tokens["eos_token"]),
            stop_ids=tuple(int(i) for i in tokens["stop_ids"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} holds no usable tokenizer ({error!r}); build the artifact again") from None


def _text_or_none(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is not a token's text")
    return value
