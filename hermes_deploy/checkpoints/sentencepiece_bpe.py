"""SentencePiece BPE pieces -> a `tokenizers` file that gives the same ids. Pure: lists in, a dict out.

Used for `tokenizer.model` files and for GGUF vocabularies of type `llama`. SentencePiece merges the
neighbours whose union has the best score; `tokenizers` merges by rank. So every split of a piece
into two pieces becomes a merge, ranked by the score of the union.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

SPACE = "▁"


class PieceType(IntEnum):
    """Numbers of sentencepiece_model.proto, which GGUF's token_type shares."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    type: PieceType


def added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
    """One entry of `added_tokens` in tokenizer.json."""
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def tokenizer_from_pieces(pieces: Sequence[Piece], *, prefix_space: bool = True) -> dict[str, Any]:
    """`prefix_space`: SentencePiece's add_dummy_prefix. Raises ValueError when it is not byte-fallback BPE."""
    vocab = {piece.text: i for i, piece in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise ValueError("a piece occurs twice in the vocabulary")
    unknown = [piece.text for piece in pieces if piece.type == PieceType.UNKNOWN]
    if len(unknown) != 1:
        raise ValueError(f"the vocabulary has {len(unknown)} unknown pieces, not one")
    if sum(piece.type == PieceType.BYTE for piece in pieces) != 256:
        raise ValueError("the vocabulary has no 256 byte pieces")
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    normalizers: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    if prefix_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(i, piece.text, special=piece.type != PieceType.USER_DEFINED)
            for i, piece in enumerate(pieces)
            if piece.type in (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.USER_DEFINED)
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown[0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(pieces, vocab),
        },
    }


def _merges(pieces: Sequence[Piece], vocab: dict[str, int]) -> list[list[str]]:
    normal = {piece.text for piece in pieces if piece.type == PieceType.NORMAL}
    ranked: list[tuple[float, list[list[str]]]] = []
    for piece in pieces:
        if piece.type != PieceType.NORMAL:
            continue
        text = piece.text
        splits = [
            (vocab[text[:cut]], vocab[text[cut:]], [text[:cut], text[cut:]])
            for cut in range(1, len(text))
            if text[:cut] in normal and text[cut:] in normal
        ]
        ranked.append((piece.score, [pair for _, _, pair in sorted(splits)]))
    ranked.sort(key=lambda item: -item[0])
    return [pair for _, pairs in ranked for pair in pairs]
