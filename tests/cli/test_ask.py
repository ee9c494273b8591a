"""`hermes-deploy ask` as a shell sees it, against a scripted Triton on a real socket."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.client.fake_triton import FakeTriton, floats, inputs_of, int32, int64s, messages_of, piece
from tests.client.test_stream import endless, stuck


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    with FakeTriton() as server:
        yield server


def command(triton: FakeTriton, *arguments: str | bytes) -> list[str | bytes]:
    return [sys.executable, "-m", "hermes_deploy.cli", "ask", "--url", triton.url, *arguments]


def run(triton: FakeTriton, *arguments: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(triton, *arguments), capture_output=True, timeout=60, **options)


def test_the_answer_goes_to_stdout_as_utf8_whatever_the_locale(triton: FakeTriton) -> None:
    triton.script = lambda _r, _c: iter((piece("Élan "), piece("🙂.", "stop", final=True)))
    result = run(triton, "?", env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stdout.decode(), result.stderr) == (0, "Élan 🙂.\n", b"")


def test_text_is_written_while_the_answer_is_still_coming(triton: FakeTriton) -> None:
    triton.script = stuck  # one piece, then nothing
    with subprocess.Popen(command(triton, "?"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"word "
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(errors.splitlines()) <= 1
    assert b"Traceback" not in errors
    assert triton.cancelled.wait(10)


def test_options_reach_the_server(triton: FakeTriton) -> None:
    options = (
        "--door ensemble --system s --max-tokens 3 --min-tokens 1 --temperature 0 --top-p 0.5 --top-k 2 --min-p 0.1 "
        "--repetition-penalty 1.1 --presence-penalty 0.5 --frequency-penalty -0.5 --seed 9 --ignore-eos --n 1"
    )
    result = run(triton, "hello", *options.split(), "--stop", "a", "--stop", "b")
    assert result.returncode == 0, result.stderr
    request = triton.requests[0]
    assert request.model_name == "hermes"
    assert messages_of(request) == [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
    assert inputs_of(request)["stop"][1] == [2]
    assert set(inputs_of(request)) == {
        "messages",
        "max_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "ignore_eos",
        "n",
        "stop",
        "cancel_key",
        "lease_ms",
    }


def test_several_answers_are_printed_whole_each_under_its_number(triton: FakeTriton) -> None:
    one = {"index": int32(1)}
    triton.script = lambda _r, _c: iter(
        (piece("a"), piece("x", more=one), piece("y", "stop", more=one), piece("b", "length", final=True))
    )
    result = run(triton, "?", "--n", "2")
    assert (result.returncode, result.stdout) == (0, b"[1] xy\n\n[0] ab\n")


def test_json_has_every_answer_and_the_log_probabilities_that_were_asked_for(triton: FakeTriton) -> None:
    tokens = {"token_logprobs": floats(-0.5), "top_logprob_ids": int64s(7), "top_logprobs": floats(-0.5)}
    triton.script = lambda _r, _c: iter(
        (piece("a", "stop", more=tokens), piece("b", "length", more={**tokens, "index": int32(1)}, final=True))
    )
    result = run(triton, "?", "--n", "2", "--logprobs", "1", "--json")
    document = json.loads(result.stdout)
    logprobs = [{"token_id": 7, "logprob": -0.5, "top": [{"token_id": 7, "logprob": -0.5}]}]
    assert document["choices"] == [
        {"index": 0, "text": "a", "finish_reason": "stop", "logprobs": logprobs},
        {"index": 1, "text": "b", "finish_reason": "length", "logprobs": logprobs},
    ]
    assert document["text"] == "a"


def test_json_is_one_document_with_the_whole_answer(triton: FakeTriton) -> None:
    triton.script = lambda _r, _c: iter((piece("é", usage=(4, 1)), piece("!", "length", usage=(4, 2), final=True)))
    result = run(triton, "?", "--json")
    document = json.loads(result.stdout)
    assert document["text"] == "é!"
    assert document["finish_reason"] == "length"
    assert document["usage"] == {"prompt_tokens": 4, "completion_tokens": 2, "cached_tokens": 0}
    assert document["choices"] == [{"index": 0, "text": "é!", "finish_reason": "length"}]
    assert document["time_to_first_token_ms"] > 0
    assert document["tokens_per_second"] > 0
    assert result.stdout.count(b"\n") == 1


def test_the_question_can_come_from_standard_input(triton: FakeTriton) -> None:
    result = run(triton, "-", input="Où est Paris ?\n".encode())
    assert result.returncode == 0
    assert messages_of(triton.requests[0])[0]["content"] == "Où est Paris ?\n"


@pytest.mark.parametrize(
    ("arguments", "given", "words"),
    [
        (("-",), "Où".encode("latin-1"), b"not UTF-8: byte 0xf9 at position 1"),
        (("-",), b"  \n", b"standard input is empty"),
        ((b"O\xf9",), b"", b"which UTF-8 cannot carry"),
        (("?", "--door", "back"), b"", b"doors are: chat, ensemble"),
        (("?", "--temperature", "-1"), b"", b"must be 0 (greedy) or more"),
        (("?", "--timeout", "0"), b"", b"more than 0, in seconds"),
        (("?", "--stop", ""), b"", b"stop text is empty"),
        (("?", "--min-p", "2"), b"", b"min_p is 2.0; it must be from 0, which is off, to 1"),
        (("?", "--n", "0"), b"", b"n is 0; it must be from 1"),
        (("?", "--logprobs", "1"), b"", b"--logprobs is printed with --json only"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line_and_nothing_is_sent(
    triton: FakeTriton, arguments: tuple[str | bytes, ...], given: bytes, words: bytes
) -> None:
    result = run(triton, *arguments, input=given)
    assert result.returncode in (2, 8)
    assert words in result.stderr
    assert result.stderr.count(b"\n") == 1
    assert result.stdout == b""
    assert triton.requests == []


def test_a_failure_after_text_came_is_an_error_on_its_own_line(triton: FakeTriton) -> None:
    triton.script = lambda _r, _c: iter((piece("half"), piece("", "error", error=("INTERNAL", "NaN"), final=True)))
    result = run(triton, "?")
    assert result.returncode == 9
    assert result.stdout == b"half\n"
    assert result.stderr.startswith(b"error: the server failed: NaN")
    as_json = run(triton, "?", "--json")
    assert json.loads(as_json.stdout)["error"]["kind"] == "ServerFailed"


def test_a_full_server_is_said_in_one_line(triton: FakeTriton) -> None:
    def script(_request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "8 chats are waiting")
        yield

    triton.script = script
    result = run(triton, "?")
    assert result.returncode == 9
    assert result.stderr.startswith(b"error: the server is full: 8 chats are waiting")


def test_a_closed_pipe_is_quiet_and_cancels_the_request(triton: FakeTriton) -> None:
    triton.script = endless
    with subprocess.Popen(command(triton, "?"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) != 0
    assert triton.cancelled.wait(10)


@pytest.mark.parametrize("arguments", [("?",), ("?", "--json")])
def test_an_output_that_is_full_is_one_clear_line(triton: FakeTriton, arguments: tuple[str, ...]) -> None:
    triton.script = lambda _r, _c: iter((piece("word ", "stop", final=True),))
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(command(triton, *arguments), stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (result.returncode, result.stderr) == (1, b"error: No space left on device\n")


@pytest.mark.parametrize(("closed", "message"), [("<&-", "standard input is closed"), (">&-", "output is closed")])
def test_a_closed_stream_is_one_clear_line(triton: FakeTriton, closed: str, message: str) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(triton, "-")]
    result = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert triton.requests == []


def test_nobody_listening_says_what_to_run() -> None:
    arguments = [sys.executable, "-m", "hermes_deploy.cli", "ask", "?", "--url", "127.0.0.1:1"]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert result.returncode == 9
    assert "hermes-deploy serve DIR" in result.stderr
