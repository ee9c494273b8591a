"""How a failure before the first piece names its code. Standard library only.

Triton's own error codes have no RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED, and its streams carry
errors as bare text, so the text begins with the gRPC status name: "RESOURCE_EXHAUSTED: 8 chats …".
Triton may put its own words ("in ensemble 'hermes', ") before it.
"""

from __future__ import annotations

import re

CODES = (
    "INVALID_ARGUMENT",
    "OUT_OF_RANGE",  # the prompt is longer than the context
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "INTERNAL",
    "NOT_FOUND",
    "UNIMPLEMENTED",
    "CANCELLED",
    "DEADLINE_EXCEEDED",
)
"""gRPC status names that the models use, in error texts and in the error_code tensor."""

_CODED = re.compile(rf"\b({'|'.join(CODES)}): (.*)", re.DOTALL)


def failure_text(code: str, message: str) -> str:
    return f"{code}: {message}"


def parse_failure(text: str) -> tuple[str, str] | None:
    """(code, message) of a text that one of our models sent; None for an error of Triton's own."""
    found = _CODED.search(text)
    return (found[1], found[2]) if found else None
