"""The tokenizer in GGUF metadata -> a `tokenizers` file with the ids of llama.cpp.

Two kinds: `gpt2` (byte-level BPE) with the pre-tokenizers in `_PRE_TOKENIZERS`, and `llama`
(SentencePiece BPE). An unknown pre-tokenizer is refused: splitting text another way than the model
was trained with gives other ids, without any sign of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hermes_deploy.checkpoints.byte_level_bpe import byte_level, byte_level_tokenizer, split
from hermes_deploy.checkpoints.sentencepiece_bpe import Piece, PieceType, added_token, tokenizer_from_pieces
from hermes_deploy.errors import CheckpointError

_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "smollm": [{"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)],
    "gpt-2": [byte_level(use_regex=True)],
    "llama-bpe": [
        split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        byte_level(use_regex=False),
    ],
    "tekken": [
        split(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        byte_level(use_regex=False),
    ],
}
_IGNORE_MERGES = {"llama-bpe", "tekken"}


def gguf_tokenizer_json(metadata: Mapping[str, Any], where: str) -> bytes:
    """Contents of tokenizer.json. Raises CheckpointError for a kind that is not known, or damaged lists."""
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _texts(metadata, "tokenizer.ggml.tokens", where)
    types = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise CheckpointError(
            f"{where}: tokenizer.ggml.token_type does not name a type for each of {len(tokens)} tokens"
        )
    if kind == "gpt2":
        data = _byte_level_bpe(metadata, tokens, types, where)
    elif kind == "llama":
        data = _sentencepiece(metadata, tokens, types, where)
    else:
        raise CheckpointError(f"{where}: tokenizer.ggml.model is {kind!r}; kinds that can be read: gpt2, llama")
    return json.dumps(data, ensure_ascii=False).encode("utf-8")


def token_text(metadata: Mapping[str, Any], key: str, where: str) -> str | None:
    """Text of the token that `key` (such as tokenizer.ggml.eos_token_id) names; None when it is not there."""
    token_id = metadata.get(key)
    if token_id is None:
        return None
    tokens = _texts(metadata, "tokenizer.ggml.tokens", where)
    if type(token_id) is not int or not 0 <= token_id < len(tokens):
        raise CheckpointError(f"{where}: {key} is {token_id!r}; ids are 0..{len(tokens) - 1}")
    return tokens[token_id]


def _byte_level_bpe(metadata: Mapping[str, Any], tokens: list[str], types: list[Any], where: str) -> dict[str, Any]:
    pre = metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"{where}: tokenizer.ggml.pre is {pre!r}; pre-tokenizers that are known: {', '.join(_PRE_TOKENIZERS)}. "
            "Give the checkpoint as a Hugging Face folder instead."
        )
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise CheckpointError(f"{where}: a token occurs twice in tokenizer.ggml.tokens")
    merges = []
    for merge in _texts(metadata, "tokenizer.ggml.merges", where):
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise CheckpointError(f"{where}: merge {merge!r} names a token that is not in the vocabulary")
        merges.append([left, right])
    special = (PieceType.UNKNOWN, PieceType.CONTROL)
    return byte_level_tokenizer(
        vocab,
        merges,
        pre_tokenizers=_PRE_TOKENIZERS[pre],
        added_tokens=[
            added_token(i, token, special=kind in special)
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in special or kind == PieceType.USER_DEFINED
        ],
        ignore_merges=pre in _IGNORE_MERGES,
    )


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[Any], where: str) -> dict[str, Any]:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise CheckpointError(f"{where}: tokenizer.ggml.scores does not give a score for each of {len(tokens)} tokens")
    try:
        pieces = [Piece(*fields) for fields in zip(tokens, scores, map(PieceType, types), strict=True)]
        return tokenizer_from_pieces(pieces, prefix_space=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)))
    except ValueError as error:
        raise CheckpointError(f"{where}: the SentencePiece vocabulary cannot be used: {error}") from None


def _texts(metadata: Mapping[str, Any], key: str, where: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise CheckpointError(f"{where}: {key} is missing; a GGUF without its tokenizer cannot be used")
    return value
