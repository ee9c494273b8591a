"""What each token id adds to the text, as bytes, read from a `tokenizers` file. Pure.

Decoding is then joining bytes and reading UTF-8, whatever the tokenizer: constant work a token, and
no token's text depends on its neighbours. Two kinds exist in Mistral-family checkpoints:
byte-level (GPT-2's alphabet of 256 letters) and SentencePiece with byte fallback (`▁`, `<0x0A>`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hermes_deploy.errors import CheckpointError

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"


@dataclass(frozen=True)
class TokenBytes:
    """`pieces[id]`: bytes of that token; special tokens and unused ids have none.

    `strip_space`: one space at the very start of the text is the tokenizer's own and is dropped.
    """

    pieces: tuple[bytes, ...]
    strip_space: bool

    def join(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids`, without stripping. An id outside the vocabulary adds nothing."""
        pieces, size = self.pieces, len(self.pieces)
        return b"".join([pieces[i] for i in ids if 0 <= i < size])


def read_token_bytes(tokenizer_json: bytes) -> TokenBytes:
    """Raises CheckpointError for a decoder of another kind."""
    data = json.loads(tokenizer_json)
    kinds = _decoder_kinds(data.get("decoder"))
    vocab: dict[str, int] = data["model"]["vocab"]
    added = data.get("added_tokens") or []
    pieces = [b""] * (1 + max([*vocab.values(), *(token["id"] for token in added)]))
    if "ByteLevel" in kinds:
        alphabet = byte_alphabet()
        for text, i in vocab.items():
            pieces[i] = _from_letters(text, alphabet)
        strip = False
    elif "Metaspace" in kinds or "ByteFallback" in kinds:
        for text, i in vocab.items():
            pieces[i] = _from_piece(text)
        strip = "Strip" in kinds or "Metaspace" in kinds
    else:
        raise CheckpointError(
            f"the tokenizer's decoder is {'+'.join(kinds) or 'none'}; "
            "decoders that are known: ByteLevel, or Replace+ByteFallback+Fuse(+Strip), or Metaspace"
        )
    for token in added:
        pieces[token["id"]] = b"" if token["special"] else token["content"].encode("utf-8")
    return TokenBytes(tuple(pieces), strip)


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters: printable Latin-1 stands for itself, every other byte for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _decoder_kinds(decoder: Any) -> list[str]:
    if decoder is None:
        return []
    if decoder["type"] != "Sequence":
        kinds = [decoder["type"]]
        # Only the scheme that adds a space at the start has one to drop.
        if kinds == ["Metaspace"] and decoder.get("prepend_scheme", "always") == "never":
            return ["ByteFallback"]
        return kinds
    kinds = []
    for step in decoder["decoders"]:
        # These exact forms are what TokenBytes does; another pattern would be another text.
        if step["type"] == "Replace" and (step["pattern"], step["content"]) != ({"String": _SPACE}, " "):
            return ["Replace of another text"]
        if step["type"] == "Strip" and (step["content"], step["start"], step["stop"]) != (" ", 1, 0):
            return ["Strip of another text"]
        kinds.append(step["type"])
    return kinds


def _from_letters(text: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes([alphabet[letter] for letter in text])
    except KeyError:
        return text.encode("utf-8")


def _from_piece(text: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace(_SPACE, " ").encode("utf-8")
