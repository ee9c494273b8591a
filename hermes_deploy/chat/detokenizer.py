"""Token ids -> text while they come. Constant work a token; concatenated pieces equal decoding at once.

A character whose bytes are not all there yet is held back; bytes that can never become one are
U+FFFD. Special tokens have no text.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from hermes_deploy.chat.token_bytes import TokenBytes

_DECODER = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """One a request: `push` every id, `flush` once at the end."""

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._decoder = _DECODER("replace")
        self._strip = tokens.strip_space

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete; "" while a character is unfinished."""
        data = self._tokens.join(ids)
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left of an unfinished character: U+FFFD or nothing. Begin a new Detokenizer afterwards."""
        return self._decoder.decode(b"", final=True)


def decode(tokens: TokenBytes, ids: Iterable[int]) -> str:
    """Text of `ids` at once, special tokens left out."""
    detokenizer = Detokenizer(tokens)
    return detokenizer.push(ids) + detokenizer.flush()
