"""Mistral's `tekken.json` (NeMo and later) -> a `tokenizers` file.

Tekken is byte-level BPE by rank, as tiktoken does it: special tokens take the first ids, the byte
strings follow in rank order, cut at the vocabulary size that the file names. Every split of a byte
string into two known ones is a merge, ranked by the rank of the union.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from hermes_deploy.checkpoints.byte_level_bpe import byte_level, byte_level_tokenizer, split
from hermes_deploy.checkpoints.sentencepiece_bpe import added_token
from hermes_deploy.errors import CheckpointError

_MAX_BYTES = 256 << 20

# Files before v7 do not list their special tokens; these are the ids that Mistral gave them.
_EARLY_SPECIAL = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)


def read_tekken(path: Path) -> dict[str, Any]:
    """Contents of tokenizer.json, as a dict. Raises CheckpointError."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path} is larger than {_MAX_BYTES} bytes")
        return _convert(json.loads(path.read_bytes()))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a Tekken tokenizer that can be used: {error!r}. Put a tokenizer.json beside it instead."
        ) from None


def _convert(data: dict[str, Any]) -> dict[str, Any]:
    config = data["config"]
    special_count = int(config["default_num_special_tokens"])
    ordinary = int(config["default_vocab_size"]) - special_count
    entries = sorted(data["vocab"], key=lambda entry: int(entry["rank"]))[:ordinary]
    ranks = {base64.b64decode(entry["token_bytes"], validate=True): i for i, entry in enumerate(entries)}
    if len(ranks) != ordinary or [entry["rank"] for entry in entries] != list(range(ordinary)):
        raise ValueError(f"it holds {len(ranks)} byte strings in order of rank; its own config says {ordinary}")
    letters = _letters()
    texts = {piece: "".join([letters[byte] for byte in piece]) for piece in ranks}
    vocab = {texts[piece]: special_count + rank for piece, rank in ranks.items()}
    special = _special(data.get("special_tokens"), special_count)
    return byte_level_tokenizer(
        {text: i for i, text in enumerate(special)} | vocab,
        _merges(ranks, texts),
        pre_tokenizers=[split(config["pattern"]), byte_level(use_regex=False)],
        added_tokens=[added_token(i, text, special=True) for i, text in enumerate(special)],
        ignore_merges=True,
    )


def _merges(ranks: dict[bytes, int], texts: dict[bytes, str]) -> list[list[str]]:
    merges: list[list[str]] = []
    for piece in ranks:  # in rank order
        splits = [
            (ranks[piece[:cut]], ranks[piece[cut:]], piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in ranks and piece[cut:] in ranks
        ]
        merges += [[texts[left], texts[right]] for _, _, left, right in sorted(splits)]
    return merges


def _special(listed: list[dict[str, Any]] | None, count: int) -> list[str]:
    named = (
        dict(enumerate(_EARLY_SPECIAL))
        if listed is None
        else {int(token["rank"]): str(token["token_str"]) for token in listed}
    )
    if any(not 0 <= i < count for i in named):
        raise ValueError(f"a special token has a rank outside 0..{count - 1}")
    return [named.get(i, f"<SPECIAL_{i}>") for i in range(count)]


def _letters() -> list[str]:
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the others begin at U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
