"""What a caller sees of an answer: pieces in order, its end, its whole, and letting go of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermes_deploy.client import (
    AnswerCut,
    Cancelled,
    Client,
    Piece,
    ProtocolMismatch,
    ServerFailed,
    TokenLogprob,
    Usage,
)
from tests.client.fake_triton import FakeTriton, final_only, floats, int32, int64s, piece


def test_pieces_come_in_order_and_make_the_answer(triton: FakeTriton, client: Client) -> None:
    triton.script = lambda _r, _c: iter(
        (
            piece("The capital", ids=(1, 2), usage=(9, 2)),
            piece(" is", ids=(3,), usage=(9, 3)),
            piece(" Paris.", "stop", ids=(4, 5), usage=(9, 5), final=True),
        )
    )
    with client.stream("What is the capital of France?") as stream:
        pieces = list(stream)
        answer = stream.result()
    assert pieces == [
        Piece("The capital", (1, 2), None, Usage(9, 2)),
        Piece(" is", (3,), None, Usage(9, 3)),
        Piece(" Paris.", (4, 5), "stop", Usage(9, 5)),
    ]
    assert answer.text == "The capital is Paris."
    assert answer.finish_reason == "stop"
    assert answer.usage == Usage(9, 5)
    assert 0 <= answer.timing.first_piece_s <= answer.timing.total_s


def test_tokens_of_a_character_that_came_in_parts_are_in_the_piece_that_brings_it(
    triton: FakeTriton, client: Client
) -> None:
    triton.script = lambda _r, _c: iter(
        (
            piece("Bonjour ", ids=(1,)),
            piece("", ids=(2, 3)),
            piece("🙂", ids=(4,)),
            piece("", ids=(5,)),
            piece("", "length", ids=(), final=True),
        )
    )
    with client.stream("?") as stream:
        pieces = [(p.text, p.token_ids) for p in stream]
    assert pieces == [("Bonjour ", (1,)), ("🙂", (2, 3, 4)), ("", (5,))]


@pytest.mark.parametrize(
    "ending",
    [
        (piece("Paris.", "length", final=True),),
        (piece("Paris.", "length"), final_only()),
        (piece("Paris."), piece("", "length", final=True)),
        (piece("Paris."), piece("", "length"), final_only()),
        (piece("Paris.", "length"),),
    ],
    ids=["flag on the last piece", "flag on an empty one", "empty last piece", "both empty", "no flag, clean end"],
)
def test_every_way_in_which_triton_ends_an_answer_is_understood(
    triton: FakeTriton, client: Client, ending: tuple[Any, ...]
) -> None:
    triton.script = lambda _r, _c: iter(ending)
    answer = client.ask("?")
    assert (answer.text, answer.finish_reason) == ("Paris.", "length")


def test_the_end_flag_is_enough_although_the_server_keeps_the_stream_open(triton: FakeTriton, client: Client) -> None:
    release = threading.Event()

    def script(_request: Any, _context: Any) -> Iterator[Any]:
        yield piece("Paris.", "stop", final=True)
        release.wait(30)

    triton.script = script
    try:
        assert client.ask("?", timeout=20).text == "Paris."
    finally:
        release.set()


@pytest.mark.parametrize("end", [(), (final_only(),)], ids=["clean end", "final flag"])
def test_an_answer_that_ends_without_a_reason_is_an_error_with_what_had_come(
    triton: FakeTriton, client: Client, end: tuple[Any, ...]
) -> None:
    triton.script = lambda _r, _c: iter((piece("The cap", usage=(9, 2)), *end))
    with client.stream("?") as stream, pytest.raises(AnswerCut, match="after 2 tokens") as caught:
        list(stream)
    assert caught.value.partial_text == "The cap"


def test_outputs_of_a_later_version_are_ignored(triton: FakeTriton, client: Client) -> None:
    later = {"logprobs": ("FP32", b"\0\0\0\0"), "mood": ("BF16", b"\1\2")}
    triton.script = lambda _r, _c: iter((piece("Paris.", "stop", more=later, final=True),))
    assert client.ask("?").text == "Paris."


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=5))
def test_any_text_arrives_as_it_was_sent_in_both_directions(
    triton: FakeTriton, client: Client, texts: list[str]
) -> None:
    triton.script = lambda _r, _c: iter((*(piece(text) for text in texts), piece("", "stop", final=True)))
    from tests.client.fake_triton import messages_of

    assert client.ask("".join(texts)).text == "".join(texts)
    assert messages_of(triton.requests[-1]) == [{"role": "user", "content": "".join(texts)}]


def test_tokens_without_text_are_told_with_the_text_that_they_become(triton: FakeTriton, client: Client) -> None:
    triton.script = lambda _r, _c: iter(
        (piece("a", ids=(1,)), piece("", ids=(2,)), piece("", ids=(3,)), piece("é", "stop", ids=(4,), final=True))
    )
    with client.stream("?") as stream:
        assert [(p.text, p.token_ids) for p in stream] == [("a", (1,)), ("é", (2, 3, 4))]


def test_several_answers_come_mixed_and_are_told_apart_by_their_index(triton: FakeTriton, client: Client) -> None:
    one = {"index": int32(1)}
    triton.script = lambda _r, _c: iter(
        (
            piece("a", ids=(1,), usage=(9, 1), more={"cached_tokens": int32(4)}),
            piece("x", ids=(7,), usage=(9, 1), more={**one, "cached_tokens": int32(8)}),
            piece("", ids=(8,), usage=(9, 2), more=one),  # half a character of the second, while the first goes on
            piece("b", "stop", ids=(2,), usage=(9, 2)),
            piece("é", ids=(9,), usage=(9, 3), more=one),
            piece("", "length", ids=(), usage=(9, 3), more=one, final=True),
        )
    )
    with client.stream("?", n=2) as stream:
        pieces = [(p.index, p.text, p.token_ids, p.finish_reason) for p in stream]
        answer = stream.result()
    assert pieces == [
        (0, "a", (1,), None),
        (1, "x", (7,), None),
        (0, "b", (2,), "stop"),
        (1, "é", (8, 9), None),
        (1, "", (), "length"),
    ]
    assert [(c.index, c.text, c.finish_reason, c.token_ids) for c in answer.choices] == [
        (0, "ab", "stop", (1, 2)),
        (1, "xé", "length", (7, 8, 9)),
    ]
    assert (answer.text, answer.finish_reason) == ("ab", "stop")
    # the prompt was read once, with four tokens of it in the cache; both answers were generated
    assert answer.usage == Usage(9, 5, 4)


def test_an_end_before_the_last_of_several_answers_is_an_error(triton: FakeTriton, client: Client) -> None:
    triton.script = lambda _r, _c: iter((piece("a", "stop", final=True),))
    with pytest.raises(AnswerCut) as caught:
        client.ask("?", n=2)
    assert caught.value.partial_text == "a"


def test_a_failure_of_one_of_several_answers_fails_the_call(triton: FakeTriton, client: Client) -> None:
    broken = piece("", "error", error=("INTERNAL", "NaN"), more={"index": int32(1)}, final=True)
    triton.script = lambda _r, _c: iter((piece("half"), broken))
    with pytest.raises(ServerFailed, match="NaN") as caught:
        client.ask("?", n=2)
    assert caught.value.partial_text == "half"


def test_an_answer_that_nobody_asked_for_is_refused(triton: FakeTriton, client: Client) -> None:
    triton.script = lambda _r, _c: iter((piece("a", more={"index": int32(1)}),))
    with pytest.raises(ProtocolMismatch, match="answer 1 came, and 1 were asked for"):
        client.ask("?")


def test_log_probabilities_come_with_the_tokens_that_they_are_of(triton: FakeTriton, client: Client) -> None:
    prompt = {
        "prompt_token_ids": int64s(1, 2, 3),
        "prompt_token_logprobs": floats(-1, -2),
        "prompt_top_logprob_ids": int64s(),
        "prompt_top_logprobs": floats(),
    }
    first = {
        "token_logprobs": floats(-0.5, -0.25),
        "top_logprob_ids": int64s(10, 11, 20, 21),
        "top_logprobs": floats(-0.5, -1.5, -0.25, -2.5),
    }
    second = {"token_logprobs": floats(-4), "top_logprob_ids": int64s(30, 31), "top_logprobs": floats(-1, -2)}
    triton.script = lambda _r, _c: iter(
        (piece("", ids=(10, 20), more={**first, **prompt}), piece("é", "stop", ids=(32,), more=second, final=True))
    )
    with client.stream("?", logprobs=2, prompt_logprobs=0) as stream:
        (only,) = list(stream)
        answer = stream.result()
    assert only.logprobs == answer.logprobs
    assert answer.logprobs == (
        TokenLogprob(10, -0.5, ((10, -0.5), (11, -1.5))),
        TokenLogprob(20, -0.25, ((20, -0.25), (21, -2.5))),
        TokenLogprob(32, -4.0, ((30, -1.0), (31, -2.0))),
    )
    # the first token of a prompt follows nothing
    assert only.prompt_logprobs == answer.prompt_logprobs == (TokenLogprob(2, -1.0), TokenLogprob(3, -2.0))


@pytest.mark.parametrize(
    "more",
    [
        {"token_logprobs": floats(-1, -2)},
        {"token_logprobs": floats(-1), "top_logprob_ids": int64s(1, 2), "top_logprobs": floats(-1)},
    ],
    ids=["two for one token", "an id without a number"],
)
def test_log_probabilities_that_do_not_fit_the_tokens_are_refused(
    triton: FakeTriton, client: Client, more: dict[str, tuple[str, bytes]]
) -> None:
    triton.script = lambda _r, _c: iter((piece("a", "stop", ids=(7,), more=more, final=True),))
    with pytest.raises(ProtocolMismatch, match="for 1 tokens"):
        client.ask("?")


def test_leaving_a_stream_early_cancels_it_on_the_server(triton: FakeTriton, client: Client) -> None:
    triton.script = endless
    with client.stream("?") as stream:
        assert next(stream).text == "word "
    assert triton.cancelled.wait(10)
    with pytest.raises(Cancelled) as caught:
        next(stream)
    assert caught.value.partial_text.startswith("word ")
    assert caught.value.request_id == stream.request_id


def test_an_exception_in_the_callers_loop_cancels_on_the_server(triton: FakeTriton, client: Client) -> None:
    triton.script = endless
    with pytest.raises(ZeroDivisionError), client.stream("?") as stream:
        for _ in stream:
            raise ZeroDivisionError
    assert triton.cancelled.wait(10)


def test_another_thread_can_cancel_a_reader_that_waits(triton: FakeTriton, client: Client) -> None:
    triton.script = stuck
    with client.stream("?") as stream:
        assert next(stream).text == "word "
        threading.Timer(0.1, stream.cancel).start()
        with pytest.raises(Cancelled, match="by this side"):
            next(stream)
    assert triton.cancelled.wait(10)


def test_a_stream_that_was_read_to_the_end_is_not_cancelled(client: Client) -> None:
    with client.stream("?") as stream:
        for got in stream:
            if got.finish_reason:
                break
    assert stream.result().text == "Paris."


def test_closing_the_client_ends_its_streams(triton: FakeTriton) -> None:
    triton.script = endless
    client = Client(triton.url)
    stream = client.stream("?")
    next(stream)
    client.close()
    with pytest.raises(Cancelled):
        list(stream)
    assert triton.cancelled.wait(10)


def test_one_client_serves_two_threads_at_once(triton: FakeTriton, client: Client) -> None:
    meet = threading.Barrier(2, timeout=20)

    def script(request: Any, _context: Any) -> Iterator[Any]:
        from tests.client.fake_triton import messages_of

        question = messages_of(request)[0]["content"]
        for _ in range(20):
            yield piece(question)
            meet.wait()  # each answer goes on only while the other does: they really overlap
        yield piece("", "stop", final=True)

    triton.script = script
    answers: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda q=q: answers.update({q: client.ask(q, timeout=30).text})) for q in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {"a": "a" * 20, "b": "b" * 20}


def endless(_request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
    while context.is_active():
        yield piece("word ")
        time.sleep(0.005)


def stuck(_request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
    yield piece("word ")
    while context.is_active():
        time.sleep(0.01)
