"""Chat template, family, stop ids and sampling defaults of a checkpoint, from whichever files it has.

Pure: takes file contents, gives `TokenizerFiles` and the family's name. The checkpoint's own
template is the truth; the family's fallback is used only where the vocabulary has its marker.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from hermes_deploy.checkpoints.tokenizer_files import TokenizerFiles
from hermes_deploy.errors import CheckpointError
from hermes_deploy.families import FAMILIES, Family

MAX_TEMPLATE = 1 << 18
_GENERATION_BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 1 << 20),
    "top_p": (1e-6, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (1e-6, 1.0),
    "repetition_penalty": (0.01, 10.0),
}


def vocabulary(tokenizer_json: bytes, where: str) -> dict[str, int]:
    """Token text -> id, added tokens included. Raises CheckpointError when it is not a tokenizers file."""
    try:
        data = json.loads(tokenizer_json)
        vocab = dict(data["model"]["vocab"])
        vocab.update({token["content"]: token["id"] for token in data.get("added_tokens") or ()})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: tokenizer.json is not a tokenizers file with a vocabulary ({error!r})"
        ) from None
    if not vocab or not all(isinstance(text, str) and type(i) is int and i >= 0 for text, i in vocab.items()):
        raise CheckpointError(f"{where}: tokenizer.json has a vocabulary whose ids are not numbers")
    return vocab


def tokenizer_files(
    tokenizer_json: bytes,
    *,
    template: str | None,
    bos_token: str | None,
    eos_token: str | None,
    eos_ids: Iterable[int],
    vocab_size: int,
    where: str,
) -> tuple[str, TokenizerFiles]:
    """(family name, files). `eos_ids`: what config and generation_config name; `vocab_size`: rows of the embedding."""
    for what, text in (("chat_template", template), ("bos_token", bos_token), ("eos_token", eos_token)):
        _check_text(text, what, where)
    vocab = vocabulary(tokenizer_json, where)
    largest = max(vocab.values())
    if largest >= vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has ids up to {largest}, the embedding only {vocab_size} rows; "
            "tokenizer and weights are not of the same model"
        )
    family, source = _family(template, vocab, where)
    stops = set(eos_ids)
    wrong = [i for i in stops if not 0 <= i < vocab_size]
    if wrong:
        raise CheckpointError(f"{where}: eos_token_id {wrong[0]} is not in the vocabulary of {vocab_size}")
    if eos_token is not None:
        if eos_token not in vocab:
            raise CheckpointError(f"{where}: eos_token {eos_token!r} is not in the tokenizer's vocabulary")
        stops.add(vocab[eos_token])
    stops |= {vocab[token] for token in family.stop_tokens if token in vocab}
    if not stops:
        raise CheckpointError(f"{where}: neither eos_token, eos_token_id nor a stop token of {family.title} is there")
    return family.name, TokenizerFiles(tokenizer_json, source, bos_token, eos_token, tuple(sorted(stops)))


def _check_text(value: object, what: str, where: str) -> None:
    """JSON and GGUF let through other types, and halves of surrogate pairs, which no file can hold."""
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{where}: {what} is a {type(value).__name__}, expected text")
    if value is not None and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise CheckpointError(f"{where}: {what} is not valid Unicode text: it holds half of a surrogate pair")


def _family(template: str | None, vocab: Mapping[str, int], where: str) -> tuple[Family, str]:
    if template is not None and template.strip():
        if len(template) > MAX_TEMPLATE:
            raise CheckpointError(f"{where}: the chat template has {len(template)} characters; at most {MAX_TEMPLATE}")
        for family in FAMILIES.values():
            if family.marker in template:
                return family, template
        markers = ", ".join(f"{family.marker} ({family.name})" for family in FAMILIES.values())
        raise CheckpointError(f"{where}: the chat template is of no known family; families are known by: {markers}")
    for family in FAMILIES.values():
        if family.template and family.marker in vocab:
            return family, family.template
    raise CheckpointError(
        f"{where}: there is no chat template, and no chat token in the vocabulary to guess one from "
        "(<|im_start|> would mean ChatML). Is this a base model? Give a chat model, or put its "
        "chat_template.jinja into the folder."
    )


def generation_defaults(data: Mapping[str, Any], where: str) -> dict[str, float]:
    """Known sampling keys of generation_config.json, checked. do_sample = false means temperature 0."""
    result: dict[str, float] = {}
    for key, (least, most) in _GENERATION_BOUNDS.items():
        value = data.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(f"{where}: {key} is {value!r}, not a number")
        if not least <= value <= most:
            raise CheckpointError(f"{where}: {key} is {value}; allowed: {least}..{most}")
        result[key] = value
    if data.get("do_sample") is False:
        result["temperature"] = 0.0
    return result


def token_ids(value: Any, where: str) -> list[int]:
    """eos_token_id of a configuration: a number, a list of numbers, or nothing."""
    if value is None:
        return []
    ids: list[int] = value if isinstance(value, list) else [value]
    if not all(type(i) is int for i in ids):
        raise CheckpointError(f"{where}: eos_token_id is {value!r}; expected a token id or a list of them")
    return ids
