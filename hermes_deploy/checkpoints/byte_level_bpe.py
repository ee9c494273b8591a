"""A byte-level BPE vocabulary -> contents of a `tokenizers` file. Shared by the GGUF and the Tekken reader. Pure."""

from __future__ import annotations

from typing import Any


def byte_level(*, use_regex: bool) -> dict[str, Any]:
    """The pre-tokenizer that writes bytes as GPT-2's letters; `use_regex`: it also splits words as GPT-2 did."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def split(pattern: str) -> dict[str, Any]:
    """The pre-tokenizer that makes every match of `pattern` a word of its own."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level_tokenizer(
    vocab: dict[str, int],
    merges: list[list[str]],
    *,
    pre_tokenizers: list[dict[str, Any]],
    added_tokens: list[dict[str, Any]],
    ignore_merges: bool,
) -> dict[str, Any]:
    """`merges`: pairs, best first. `ignore_merges`: a word that is a token is taken whole."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    }
