"""Bytes of a connection become one whole, bounded request, or a refusal that says what was found and is allowed."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_deploy.serving.http_requests import MAX_CHUNKS, MAX_HEAD, Refused, Request, RequestReader

MOST = 1000
PATH = b"/v2/models/hermes_engine/generate"
BODY = b'{"messages": "[{\\"role\\": \\"user\\"}]"}'


def post(body: bytes, *headers: bytes, path: bytes = PATH) -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(*chunks: bytes) -> bytes:
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"POST " + PATH + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def read(*parts: bytes, most: int = MOST) -> Request | None:
    reader = RequestReader(most)
    for part in parts:
        request = reader.feed(part)
        if request is not None:
            return request
    return None


@given(st.lists(st.integers(1, len(post(BODY)) - 1), max_size=10), st.booleans())
def test_it_makes_no_difference_how_a_request_is_cut(cuts: list[int], in_chunks: bool) -> None:
    whole = chunked(BODY[:5], BODY[5:]) if in_chunks else post(BODY)
    places = [0, *sorted(cuts), len(whole)]
    request = read(*(whole[a:b] for a, b in itertools.pairwise(places) if a < b))
    assert request is not None
    assert bytes(request.body) == BODY
    head = request.head.lower()
    assert head.startswith(b"post " + PATH + b" http/1.1\r\nhost: x\r\n")
    assert b"content-length: %d\r\n" % len(BODY) in head
    assert b"transfer-encoding" not in head
    assert head.count(b"connection: close") == 1


def test_a_part_of_a_request_is_none_yet_and_what_follows_one_is_kept() -> None:
    assert read(post(BODY)[:-1]) is None
    request = read(post(BODY) + b"GET /next")
    assert request is not None
    assert (bytes(request.body), request.rest, request.keep_alive) == (BODY, b"GET /next", True)


@pytest.mark.parametrize("header", [b"Connection: close", b"connection: x, Close"])
def test_a_caller_that_wants_to_close_is_not_kept(header: bytes) -> None:
    request = read(post(BODY, header))
    assert request is not None
    assert not request.keep_alive


def test_headers_for_triton_are_passed_on() -> None:
    request = read(post(BODY, b"Hermes-Admin: secret", b"Keep-Alive: 5"))
    assert request is not None
    assert b"hermes-admin: secret\r\n" in request.head
    assert b"keep-alive" not in request.head


def test_who_waits_for_a_word_before_sending_its_body_is_heard() -> None:
    reader = RequestReader(MOST)
    reader.feed(post(BODY, b"Expect: 100-continue")[: -len(BODY)])
    assert reader.wants_continue()


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400, "not a request of HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "Content-Length"),
        (post(BODY, b"Content-Length: 5"), 400, "Content-Length"),
        (b"GET / HTTP/1.1\r\n" + b"a" * MAX_HEAD * 2, 431, f"over {MAX_HEAD} bytes"),
        (post(BODY, *[b"a: b"] * 200), 431, "has 202 headers; at most 100"),
        (b"DELETE / HTTP/1.1\r\nHost: x\r\n\r\n", 405, "GET and POST"),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405, "GET and POST"),
        (post(BODY, b"Content-Encoding: gzip"), 415, "compressed"),
        (post(b"x" * (MOST + 1))[:200], 413, f"at most {MOST} are taken (setting max_request_bytes)"),
        (chunked(*[b"x" * 100] * 11), 413, f"at most {MOST} are taken"),
        (post(b'{"messages": ' + b"[" * 65 + b"]" * 65 + b"}"), 400, "nested more than 64 levels"),
        (post(b"[" * 70, b"Inference-Header-Content-Length: 2"), 400, "nested more than 64 levels"),
        (post(BODY, b"Inference-Header-Content-Length: 9999", path=b"/v2/models/x/infer"), 400, "not the length"),
    ],
)
def test_what_is_too_much_or_none_is_refused(data: bytes, status: int, words: str) -> None:
    with pytest.raises(Refused) as refused:
        read(data)
    assert refused.value.status == status
    assert words in str(refused.value)
    head, _, body = refused.value.response().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert words in json.loads(body)["error"]


def test_chunks_are_counted() -> None:
    with pytest.raises(Refused, match="chunks; send larger ones"):
        read(chunked(*[b"x"] * (MAX_CHUNKS + 1)), most=1 << 20)


def test_what_lies_behind_the_json_of_infer_is_not_read_as_json() -> None:
    body = b"{}" + b"[" * 500
    assert read(post(body, b"Inference-Header-Content-Length: 2", path=b"/v2/models/x/versions/1/infer"))


def test_a_port_that_takes_no_body_says_so() -> None:
    with pytest.raises(Refused, match="none are taken"):
        read(post(b"x"), most=0)
