"""A SentencePiece `tokenizer.model` -> a `tokenizers` file. The protobuf is read by hand: it is small.

Wire format: https://protobuf.dev/programming-guides/encoding; fields: sentencepiece_model.proto.
Only what Mistral and Llama ship is taken: BPE with byte fallback and no text normalization.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hermes_deploy.checkpoints.sentencepiece_bpe import Piece, PieceType, tokenizer_from_pieces
from hermes_deploy.errors import CheckpointError

_MAX_BYTES = 64 << 20
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_BPE = 2
# Width in bytes of the wire types that are not a varint (0) or length-delimited (2).
_FIXED = {1: 8, 5: 4}


def read_sentencepiece(path: Path) -> dict[str, Any]:
    """Contents of tokenizer.json, as a dict. Raises CheckpointError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path} is larger than {_MAX_BYTES} bytes")
        return _convert(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, struct.error, IndexError) as error:
        raise CheckpointError(
            f"{path} is not a SentencePiece model that can be used: {error}. Put a tokenizer.json beside it instead."
        ) from None


def _convert(data: bytes) -> dict[str, Any]:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == _PIECES:
            pieces.append(_piece(_message(value)))
        elif number == _TRAINER:
            trainer = dict(_fields(_message(value)))
        elif number == _NORMALIZER:
            normalizer = dict(_fields(_message(value)))
    # Field numbers and defaults of TrainerSpec and NormalizerSpec.
    if trainer.get(3, 1) != _BPE or not trainer.get(35, 0):
        raise ValueError("it is not of type BPE with byte fallback")
    if normalizer.get(2, b"") or normalizer.get(4, 1):
        raise ValueError("it normalizes text or removes spaces")
    return tokenizer_from_pieces(pieces, prefix_space=bool(normalizer.get(3, 1)))


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    (score,) = struct.unpack("<f", fields.get(2, b"\0\0\0\0"))
    return Piece(_message(fields.get(1, b"")).decode("utf-8"), score, PieceType(fields.get(3, 1)))


def _message(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field has the wrong type")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, int for a varint, bytes for everything else) of one message, in order."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if size > len(data) - at:
            raise ValueError("it is cut off")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a number without an end at byte {at}")
