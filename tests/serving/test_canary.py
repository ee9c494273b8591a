"""A canary string in whatever is said to or by the model appears in no log, metric or file; who asked it does."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from hermes_deploy.client import Client, ClientError
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE
from tests.serving.artifact import MAX_CONTEXT
from tests.serving.raw_requests import send, text
from tests.serving.serve_process import ServeProcess, serving

CANARY = "CANARYbird"
DOORS: tuple[Any, ...] = ("chat", "ensemble")
HELLO = json.dumps([{"role": "user", "content": "hello"}])
WRONG: tuple[dict[str, Any], ...] = (
    {"messages": text(CANARY.encode())},
    {"messages": text(b"\xff" + CANARY.encode())},
    {"prompt": text(b"\xff" + CANARY.encode())},
    {"prompt": text(CANARY.encode() * MAX_CONTEXT)},
    {"prompt": text(CANARY.encode()), "messages": text(CANARY.encode())},
    {"messages": text(json.dumps([{"role": CANARY, "content": CANARY}]).encode())},
    {"messages": text(json.dumps([{"role": "user", "content": CANARY, CANARY: 1}]).encode())},
    {"messages": text(json.dumps([{"role": "user", "content": CANARY * MAX_CONTEXT}]).encode())},
    {"messages": text(HELLO.encode()), "stop": text(b"\xff" + CANARY.encode())},
    {"messages": text(HELLO.encode()), "stop": np.array([CANARY.encode()] * 20, np.object_)},
    {"messages": text(HELLO.encode()), "bad_words": text(CANARY.encode() * 100)},
    {"messages": text(HELLO.encode()), "cancel_key": text(CANARY.encode())},
    {"messages": text(HELLO.encode()), "max_tokens": text(CANARY.encode())},
    {"messages": text(HELLO.encode()), "max_tokens": np.array([0], np.int32), "stop": text(CANARY.encode())},
    {"messages": text(CANARY.encode()), "timeout_ms": np.array([1], np.int32)},
    {"cancel": text(CANARY.encode() * 3)},
    {"messages": text(HELLO.encode()), CANARY: np.array([1], np.int32)},
)


@dataclass
class Seen:
    """`files`: whatever Triton and serve wrote, by name; `lines`: serve's own."""

    files: dict[str, str]
    lines: list[dict[str, Any]]


@pytest.fixture(scope="module")
def seen(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """A serve that was asked everything, with the canary in it, and then stopped."""
    work = tmp_path_factory.mktemp("canary")
    log = work / "triton.log"
    with serving(artifact, {"TMPDIR": str(work)}, log=log, log_format="json", log_level="debug") as served:
        answers = ask_well(served)
        ask_badly(served)
        files = {str(path): path.read_bytes().decode(errors="replace") for path in work.rglob("*") if is_own(path)}
        with urllib.request.urlopen(served.said["metrics"]) as answer:
            files["metrics"] = answer.read().decode()
        files["health"] = json.dumps(served.health()[1])
        served.process.terminate()
        status, told = served.end()
        assert status == 0, told
    files["the log at the end"] = log.read_bytes().decode(errors="replace")
    files["serve's own"] = told
    assert answers, "nothing was answered, so nothing could show"
    files["answers"] = answers[0]
    yield Seen(files, [json.loads(line) for line in told.splitlines()])


def is_own(path: Path) -> bool:
    """Not the artifact's own files, which the run folder links to, nor its pipe and socket."""
    return path.is_file() and not path.is_symlink()


def ask_well(served: ServeProcess) -> list[str]:
    """Answered, cancelled and late, with the canary in prompt, stop text, bad words, key."""
    texts = []
    with Client(served.grpc) as client:
        for door in DOORS:
            options: dict[str, Any] = {"stop": CANARY, "bad_words": [CANARY], "client": "the-client", "door": door}
            texts.append(client.ask(CANARY, max_tokens=30, request_id=f"well-{door}", **options).text)
            with client.stream(CANARY, max_tokens=MAX_CONTEXT, request_id=f"cancelled-{door}", **options) as stream:
                next(stream)
            with suppress(ClientError):
                client.ask(CANARY, max_tokens=MAX_CONTEXT, timeout=0.3, request_id=f"late-{door}", **options)
    return texts


def ask_badly(served: ServeProcess) -> None:
    with triton.InferenceServerClient(served.grpc) as raw:
        for model in (ENGINE, ENSEMBLE):
            for inputs in WRONG:
                with suppress(InferenceServerException):
                    send(raw, model, **inputs)
    for model in (ENGINE, ENSEMBLE, CANARY):
        for body in ({"messages": CANARY}, {"messages": HELLO, CANARY: 1}, {"messages": [CANARY]}, CANARY):
            request = urllib.request.Request(
                f"{served.said['http']}/v2/models/{model}/generate_stream", json.dumps(body).encode()
            )
            with suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()


def test_the_canary_is_in_no_log_metric_or_file(seen: Seen) -> None:
    assert len(seen.files) > 8, sorted(seen.files)
    assert any(name.endswith("config.pbtxt") for name in seen.files)
    for name, content in seen.files.items():
        assert CANARY not in content, f"{name}: …{content[max(0, content.index(CANARY) - 300) :][:600]}"


def test_an_answer_is_in_no_log_either(seen: Seen) -> None:
    answer = seen.files["answers"]
    assert len(answer) > 10
    assert not any(answer[:10] in content for name, content in seen.files.items() if name != "answers")


def test_every_request_is_a_line_with_who_and_how_much(seen: Seen) -> None:
    lines = {line["request_id"]: line for line in seen.lines if line.get("request_id")}
    for door, name in (("chat", "chat"), ("ids", "ensemble")):
        well = lines[f"well-{name}"]
        assert (well["message"], well["door"], well["client"]) == ("request finished", door, "the-client")
        assert (well["completion_tokens"], well["finish_reason"]) == (30, "length")
        assert well["prompt_tokens"] > 5
        assert 0 <= well["queue_s"] <= well["first_token_s"] <= well["total_s"]
        assert lines[f"cancelled-{name}"]["finish_reason"] == "cancelled"
        late = lines[f"late-{name}"]
        assert late["finish_reason"] in ("cancelled", "error")
        assert late["completion_tokens"] < MAX_CONTEXT
    assert lines["late-chat"]["logger"] == "hermes_deploy.requests"


def test_every_refusal_is_a_line_with_its_code(seen: Seen) -> None:
    refused = [line for line in seen.lines if line["message"] == "request refused"]
    assert {line["code"] for line in refused} >= {"INVALID_ARGUMENT", "OUT_OF_RANGE"}
    assert {line["door"] for line in refused} == {"chat", "ids", "prompt"}


def test_where_content_is_asked_for_it_is_there_for_both_doors_and_the_start_says_so(artifact: Path) -> None:
    answers = {}
    with serving(artifact, log_format="json", log_content=True) as served:
        with Client(served.grpc) as client:
            for door in DOORS:
                answers[door] = client.ask(CANARY, max_tokens=30, request_id=door, door=door).text
        served.process.terminate()
        status, told = served.end()
        assert status == 0, told
    lines = [json.loads(line) for line in told.splitlines()]
    assert any(line["level"] == "warning" and "log_content is on" in line["message"] for line in lines)
    for door in DOORS:
        (content,) = [line for line in lines if line["message"] == "request content" and line["request_id"] == door]
        assert CANARY in content["prompt"]
        assert content["answers"] == [answers[door]]
