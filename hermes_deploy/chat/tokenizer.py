"""Chats to token ids and back for one checkpoint; needs `tokenizers` and `jinja2`, no numpy, no engine.

Messages are not trusted: what spells a control token in them (`<|im_start|>`, `</s>`) stays text. Text
that may hold control tokens has doors of its own: `encode`, and for a whole prompt `encode_prompt`.

The folder that a build writes beside the engine: `tokenizer.json`, `chat_template.jinja`,
`tokens.json` ({"bos_token", "eos_token", "stop_ids"}).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hermes_deploy.chat.control_tokens import ControlledTokenizer, control_contents
from hermes_deploy.chat.detokenizer import Detokenizer, decode
from hermes_deploy.chat.messages import check_messages, check_unicode
from hermes_deploy.chat.template import ChatTemplate
from hermes_deploy.chat.token_bytes import read_token_bytes
from hermes_deploy.checkpoints.tokenizer_files import TokenizerFiles
from hermes_deploy.errors import ArtifactError, CheckpointError, RequestError

TOKENIZER, TEMPLATE, TOKENS = "tokenizer.json", "chat_template.jinja", "tokens.json"


class ChatTokenizer:
    """Safe to use from several threads. Raises CheckpointError when the files cannot be used."""

    def __init__(self, files: TokenizerFiles) -> None:
        tokens = (files.bos_token, files.eos_token)
        try:
            data = json.loads(files.tokenizer_json)
            controls = control_contents(data, files.chat_template, tokens, files.stop_ids)
            self._tokenizer = ControlledTokenizer(data, controls)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"tokenizer.json cannot be used: {error!r}") from None
        self._token_bytes = read_token_bytes(files.tokenizer_json)
        self._template = ChatTemplate(files.chat_template, bos_token=files.bos_token, eos_token=files.eos_token)
        self.stop_ids = files.stop_ids
        _check_traced(self._template, self._tokenizer)
        self._opening = _opening(files, self._tokenizer)

    @classmethod
    def from_folder(cls, path: Path) -> ChatTokenizer:
        """Raises ArtifactError when the folder does not hold the three files."""
        return cls(read_folder(path))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return len(self._token_bytes.pieces)

    @property
    def longest_token(self) -> int:
        """Bytes of text that the longest token stands for in a prompt; control tokens as they are spelled there."""
        return max(*map(len, self._token_bytes.pieces), self._tokenizer.longest_control)

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that no text in a message becomes, but for the one that stands for unknown letters."""
        return self._tokenizer.control_ids

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt as text, ready for the assistant's answer. Raises RequestError."""
        return self._template.render(check_messages(messages))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of the rendered prompt. Only the template writes control tokens; it begins the text where there is one.

        Raises RequestError.
        """
        return self._tokenizer.encode(self._template.render(check_messages(messages)))

    def encode(self, text: str) -> list[int]:
        """Ids of trusted `text`: control tokens in it are control tokens, such as those of raw ChatML. Adds nothing.

        Raises RequestError for text that is not valid Unicode.
        """
        return self._tokenizer.encode_trusted(check_unicode(text, "the text"))

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a trusted whole prompt: those of `encode`, behind the BOS where this model's template begins with it.

        A text that has its BOS gets no second one. A template that writes no BOS was trained without: none is added,
        whatever the tokenizer's own settings say. So the rendered text of a chat has the ids of that chat, with its
        BOS or without. Raises RequestError as `encode` does.
        """
        ids = self.encode(text)
        if not self._opening or ids[:1] == self._tokenizer.encode_trusted(self._opening):
            return ids
        # as text, not as an id before the others: the first word behind a BOS may be cut in another way
        return self.encode(self._opening + text)

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text`, in which nothing is a control token. Adds nothing. Raises RequestError as `encode` does."""
        return self._tokenizer.encode(check_unicode(text, "the text"))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without special tokens."""
        return decode(self._token_bytes, ids)

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for one answer."""
        return Detokenizer(self._token_bytes)


_PROBES: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
)


def _check_traced(template: ChatTemplate, tokenizer: ControlledTokenizer) -> None:
    """Raises CheckpointError when a harmless chat holds control tokens that nobody is known to have written.

    They would be text in every prompt, and the model would answer badly.
    """
    for roles in _PROBES:
        try:
            prompt = template.render([{"role": role, "content": "Hello"} for role in roles])
        except RequestError:
            continue  # a template may refuse a system message; it says so to who sends one
        lost = tokenizer.forged(prompt)
        if lost:
            raise CheckpointError(
                f"the chat template writes {lost!r} in a way that cannot be told from what a user writes; "
                "write it as one text in the template, or as parts joined by + or ~"
            )


_ANY_BOS = "\ufdd2"
"""Stands for the BOS token: Unicode keeps it out of all text, so a template that begins with it was given it."""


def _opening(files: TokenizerFiles, tokenizer: ControlledTokenizer) -> str:
    """The BOS token where the template begins a prompt with whatever token that is; else ""."""
    if files.bos_token is None:
        return ""
    ids = tokenizer.encode_trusted(files.bos_token)
    if len(ids) != 1 or ids[0] not in tokenizer.control_ids:
        return ""
    template = ChatTemplate(files.chat_template, bos_token=_ANY_BOS, eos_token=files.eos_token)
    for roles in _PROBES:
        try:
            prompt = template.render([{"role": role, "content": "Hello"} for role in roles])
        except RequestError:
            continue
        return files.bos_token if prompt.startswith(_ANY_BOS) else ""
    return ""


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
