"""Counting a JSON's structure without parsing it: as a parser would, for whatever is valid."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.chat.json_shape import Shape, check_shape
from hermes_deploy.errors import RequestError

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text(alphabet='"\\\\[]{}a\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='"\\\\[{'), inner),
)


def shape(value: Any) -> Shape:
    """Counted on the parsed value."""
    if isinstance(value, str):
        return Shape(1, 0, 0)
    if not isinstance(value, list | dict):
        return Shape(0, 0, 0)
    inner = [shape(one) for one in (value.values() if isinstance(value, dict) else value)]
    keys = len(value) if isinstance(value, dict) else 0
    return Shape(
        keys + sum(one.strings for one in inner),
        1 + sum(one.containers for one in inner),
        1 + max((one.depth for one in inner), default=0),
    )


@given(VALUES)
def test_it_counts_what_a_parser_finds(value: Any) -> None:
    text, found = json.dumps(value).encode(), shape(value)
    check_shape(text, found, "it")
    for less in (
        Shape(found.strings - 1, found.containers, found.depth),
        Shape(found.strings, found.containers - 1, found.depth),
        Shape(found.strings, found.containers, found.depth - 1),
    ):
        if min(less.strings, less.containers, less.depth) >= 0:
            with pytest.raises(RequestError):
                check_shape(text, less, "it")


@pytest.mark.parametrize("text", [b"", b'"', b'\\"[[[[', b"]]]]", b'"' * 3 + b"[" * 3, bytes(range(256))])
def test_what_is_no_json_is_no_fault(text: bytes) -> None:
    check_shape(text, Shape(200, 4, 4), "it")


def test_brackets_that_a_string_only_seems_to_hide_count() -> None:
    with pytest.raises(RequestError, match="nested"):
        check_shape(b'{"a\\\\": ' + b"[" * 50 + b', "', Shape(200, 100, 16), "it")
