"""Tokenizer, template and special tokens of a Hugging Face folder, from the files that it has.

Order: tokenizer.json, else tokenizer.model (SentencePiece), else tekken.json; the last two are
converted and give the same ids as the originals. Paths are plain names inside the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes_deploy.checkpoints.sentencepiece_bpe import added_token
from hermes_deploy.errors import CheckpointError

MAX_JSON = 256 << 20
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True)
class FolderTokenizer:
    tokenizer_json: bytes
    template: str | None
    bos_token: str | None
    eos_token: str | None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most MAX_JSON bytes; {} when the file is not there. Raises CheckpointError."""
    if not path.exists():
        return {}
    try:
        data = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}. Get the file again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__}, expected an object")
    return data


def read_bytes(path: Path, most: int = MAX_JSON) -> bytes:
    try:
        size = path.stat().st_size
        if size > most:
            raise CheckpointError(f"{path} has {size} bytes; at most {most} are read")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def read_text(path: Path, most: int = MAX_JSON) -> str:
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error}") from None


def read_folder_tokenizer(folder: Path) -> FolderTokenizer:
    """Raises CheckpointError when there is no tokenizer that can be read."""
    settings = read_json(folder / "tokenizer_config.json")
    names = {**read_json(folder / "special_tokens_map.json"), **settings}
    if not (folder / "tokenizer.json").exists():
        # Mistral's own files have these two under these names and need no tokenizer_config.json.
        names = {"bos_token": "<s>", "eos_token": "</s>"} | names
    return FolderTokenizer(
        tokenizer_json=_tokenizer_json(folder, settings),
        template=_template(folder, settings),
        bos_token=_token_text(names.get("bos_token"), "bos_token", folder),
        eos_token=_token_text(names.get("eos_token"), "eos_token", folder),
    )


def _tokenizer_json(folder: Path, settings: Mapping[str, Any]) -> bytes:
    if (folder / "tokenizer.json").exists():
        return read_bytes(folder / "tokenizer.json")
    if (folder / "tokenizer.model").exists():
        from hermes_deploy.checkpoints.sentencepiece_file import read_sentencepiece

        data = read_sentencepiece(folder / "tokenizer.model")
    elif (folder / "tekken.json").exists():
        from hermes_deploy.checkpoints.tekken_file import read_tekken

        data = read_tekken(folder / "tekken.json")
    else:
        raise CheckpointError(
            f"{folder} has no tokenizer; one of these is needed: tokenizer.json, tokenizer.model, tekken.json"
        )
    _add_tokens(data, _added_tokens(folder, settings), folder)
    return json.dumps(data, ensure_ascii=False).encode("utf-8")


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Id -> (text, special) from added_tokens.json and tokenizer_config.json's added_tokens_decoder."""
    found: dict[int, tuple[str, bool]] = {}
    try:
        for text, token_id in read_json(folder / "added_tokens.json").items():
            found[int(token_id)] = (text, True)
        for token_id, token in (settings.get("added_tokens_decoder") or {}).items():
            found[int(token_id)] = (str(token["content"]), bool(token.get("special", False)))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder}: its added tokens cannot be read: {error!r}") from None
    return found


def _add_tokens(data: dict[str, Any], tokens: Mapping[int, tuple[str, bool]], folder: Path) -> None:
    vocab = data["model"]["vocab"]
    known = {token["id"]: token for token in data["added_tokens"]}
    by_id = {i: text for text, i in vocab.items()}
    for token_id, (text, special) in sorted(tokens.items()):
        present = known[token_id]["content"] if token_id in known else by_id.get(token_id)
        if present is not None and present != text:
            raise CheckpointError(
                f"{folder}: id {token_id} is {present!r} in the tokenizer, {text!r} among added tokens"
            )
        if token_id in known:
            known[token_id]["special"] = special
        else:
            known[token_id] = added_token(token_id, text, special=special)
            vocab[text] = token_id
    data["added_tokens"] = [known[i] for i in sorted(known)]


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else chat_template.json, else tokenizer_config.json; of several the one named default."""
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja")
    template = read_json(folder / "chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(template, list):
        try:
            named = {entry["name"]: entry["template"] for entry in template}
        except (TypeError, KeyError):
            raise CheckpointError(f"{folder}: chat_template is a list, but not of names and templates") from None
        if "default" not in named:
            raise CheckpointError(f"{folder}: of the chat templates {', '.join(map(str, named))} none is named default")
        template = named["default"]
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{folder}: chat_template is a {type(template).__name__}, expected text")
    return template


def _token_text(value: object, key: str, folder: Path) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{folder}: {key} is {value!r}; expected a token's text")
    return value
