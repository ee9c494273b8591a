"""A tokenizer that takes a control token only where it is told to; everywhere else its text is text.

Takes the contents of a `tokenizers` file and the names of its control tokens; knows no messages. In
the tokenizer that is made, a control token is spelled with two characters around it that Unicode
keeps out of all text (U+FDD0, U+FDD1). Where one is meant, that spelling is put in; the plain
spelling means nothing to it any more. So the library itself still cuts, normalizes and merges, in
one call, and ids are those of the original file for all text in which every control token is meant.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer

from hermes_deploy.chat.traced_text import TracedText, own_runs
from hermes_deploy.errors import RequestError

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"


class ControlledTokenizer:
    """Safe to use from several threads."""

    def __init__(self, data: dict[str, Any], controls: Iterable[str]) -> None:
        """`data`: of tokenizer.json. `controls`: contents of added tokens. Raises ValueError for another kind."""
        names = sorted(set(controls), key=lambda name: (-len(name), name))
        # longest first: of several that begin at one place the library takes the longest too
        self._controls = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        longest = max(map(len, names), default=1)
        self._spelling = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]{{1,{longest}}}){_CLOSE}")
        self._names = frozenset(names)
        self._tokenizer = Tokenizer.from_buffer(json.dumps(_respelled(data, self._names)).encode())
        # A tokenizer.json may carry the settings of somebody's training run.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        tokens = [token for token in data.get("added_tokens") or () if token["content"] in self._names]
        self._ids = frozenset(token["id"] for token in tokens)
        changed = data.get("normalizer") is not None
        self._may_miss = any(token["single_word"] or (token["normalized"] and changed) for token in tokens)

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of the control tokens."""
        return self._ids

    @property
    def longest_control(self) -> int:
        """Bytes of the longest control token as it is spelled; 0 where there is none."""
        return max((len(name.encode()) for name in self._names), default=0)

    def meant(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of the control tokens that stand wholly in one stretch of the template's own text."""
        return [span for start, end in own_runs(text) for span in self._found(text, start, end)]

    def forged(self, text: str) -> str:
        """The first control token in `text` that is not meant, or ""."""
        meant = set(self.meant(text))
        return next((text[a:b] for a, b in self._found(text, 0, len(text)) if (a, b) not in meant), "")

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which what the template wrote (see `TracedText`) may be a control token.

        Raises RequestError for text that holds the private spelling of a control token.
        """
        self._refuse_spelled(text)
        spans = self.meant(text)
        while True:
            spelled, places = _spell(text, spans)
            # of batches alone the library lets other threads run meanwhile; the fast one has no offsets
            encode = self._tokenizer.encode_batch if self._may_miss else self._tokenizer.encode_batch_fast
            encoding = encode([spelled], add_special_tokens=False)[0]
            taken = range(len(spans)) if not self._may_miss else self._taken(encoding, places)
            if len(taken) == len(spans):
                ids: list[int] = encoding.ids
                return ids
            # Beside a letter, or after a normalizer that changes the token too, the original does not see it
            # either: there it is text.
            spans = [spans[i] for i in taken]

    def encode_trusted(self, text: str) -> list[int]:
        """Ids of `text`, in which every control token is meant. Raises RequestError as `encode` does."""
        return self.encode(TracedText(text))

    def _found(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        return (match.span() for match in self._controls.finditer(text, start, end))

    def _refuse_spelled(self, text: str) -> None:
        for match in self._spelling.finditer(text):
            if match[1] in self._names:
                raise RequestError(
                    f"the text holds U+FDD0 and U+FDD1 around {match[1]!r}: Unicode keeps these two out of all text, "
                    "and here they mark control tokens; leave them out"
                )

    def _taken(self, encoding: Any, places: list[tuple[int, int]]) -> list[int]:
        """Which of `places` became their control token."""
        starts = [start for start, _ in places]
        taken = set()
        for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            # a token may have taken spaces around it along
            at = bisect_left(starts, start)
            if i in self._ids and at < len(starts) and places[at][1] <= end:
                taken.add(at)
        return sorted(taken)


def control_contents(
    data: dict[str, Any], template: str, texts: Iterable[str | None], ids: Iterable[int]
) -> frozenset[str]:
    """Contents of the added tokens that structure a chat; `data` as above.

    Those are the ones marked special, and of the others those that the template writes, that are one of
    `texts` (begin and end of text), or whose id is one of `ids` (stops): some checkpoints forget the mark.
    What is left are words with an id of their own, which anybody may write.
    """
    named, stops = frozenset(texts), frozenset(ids)

    def structures(token: dict[str, Any]) -> bool:
        content = token["content"]
        if token["special"] or token["id"] in stops or content in named:
            return True
        # a template also holds plain words, such as the names of the roles
        return content in template and not content.isalnum()

    # runs of spaces are ordinary text, however they are marked
    return frozenset(
        token["content"]
        for token in data.get("added_tokens") or ()
        if not token["content"].isspace() and structures(token)
    )


def _spell(text: str, spans: list[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
    """`text` with `spans` in the private spelling, and where they are then."""
    pieces: list[str] = []
    places = []
    at = length = 0
    for start, end in spans:
        length += start - at
        pieces += (text[at:start], _spelled(text[start:end]))
        places.append((length, length + len(pieces[-1])))
        length += len(pieces[-1])
        at = end
    # a plain str: the library looks at the exact type
    return "".join([*pieces, text[at:]]), places


def _spelled(name: str) -> str:
    return f"{_OPEN}{name}{_CLOSE}"


def _respelled(data: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """The file with every one of `names` in the private spelling, and no way left to merge letters into one."""
    model = data["model"]
    added = data.get("added_tokens") or []
    vocab = {_spelled(text) if text in names else text: i for text, i in model["vocab"].items()}
    for token in added:
        if token["content"] in names:
            vocab.setdefault(_spelled(token["content"]), token["id"])
    unknown = model.get("unk_token")
    return {
        **data,
        "added_tokens": [
            {**token, "content": _spelled(token["content"])} if token["content"] in names else token for token in added
        ],
        # it names control tokens, and is never asked for: the template writes what begins a text
        "post_processor": None,
        "model": {
            **model,
            "vocab": vocab,
            "merges": [pair for pair in model["merges"] if names.isdisjoint(_merged(pair))],
            "unk_token": _spelled(unknown) if unknown in names else unknown,
        },
    }


def _merged(pair: str | list[str]) -> tuple[str, str, str]:
    left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
    return left, right, left + right
