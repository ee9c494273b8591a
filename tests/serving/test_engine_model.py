"""The engine model when something goes wrong: before the first piece it is the request's error, after it in-band."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints.tokenizer_files import TokenizerFiles
from hermes_deploy.repository.demo import demo_config
from hermes_deploy.runtime.token_loop import TokenLoop
from hermes_deploy.serving.engine_model import EngineModel
from tests.fixtures.tiny import CHATML, byte_tokenizer_json
from tests.runtime.fake_session import FakeSession
from tests.serving import fake_triton
from tests.serving.fake_triton import Request, Sender
from tests.serving.processes import eventually

WAIT = 10.0


@pytest.fixture
def session() -> FakeSession:
    return FakeSession(slots=1, max_context=1 << 15, vocab_size=256)


@contextmanager
def serving(session: FakeSession, *, piece_interval: float = 0.0, **defaults: Any) -> Iterator[Callable[..., Sender]]:
    """Gives a function that asks for an answer to the tokens 1, 2, 3 and returns the sender on which it comes."""
    tokenizer = ChatTokenizer(TokenizerFiles(byte_tokenizer_json().encode(), CHATML, None, "<|im_end|>", ()))
    config = demo_config().model_copy(update={"stop_ids": ()})
    loop = TokenLoop(session, queue_limit=1)
    model = EngineModel(fake_triton, config, tokenizer, loop, slots=session.slots, piece_interval=piece_interval)

    def ask(max_tokens: int = 5, **inputs: Any) -> Sender:
        given = {"input_ids": np.array([1, 2, 3]), **defaults, **inputs}
        request = Request(max_tokens=np.array([max_tokens], np.int32), **given)
        model.execute([request])
        return request.sender

    yield ask
    model.close()


@pytest.fixture
def engine(session: FakeSession) -> Iterator[Callable[..., Sender]]:
    """One slot, greedy."""
    with serving(session, temperature=np.array([0], np.float32)) as ask:
        yield ask


def finished(sender: Sender) -> list[fake_triton.InferenceResponse]:
    assert sender.done.wait(WAIT), "nobody answers"
    return sender.sent


def test_a_refused_request_is_let_go_at_once(session: FakeSession) -> None:
    """With it goes Triton's shared memory, which may be 100 MB; a cycle would stay until Python looks for one."""
    gc.disable()
    try:
        with serving(session) as ask:
            sender = ask(top_p=np.array([2], np.float32))
            assert finished(sender)[0].error is not None
            gone = weakref.ref(sender)
            del sender
            assert eventually(lambda: gone() is None)
    finally:
        gc.enable()


def test_an_engine_that_fails_on_the_prompt_is_the_requests_own_error(
    engine: Callable[..., Sender], session: FakeSession
) -> None:
    def fail(_kind: str, _slots: tuple[int, ...]) -> None:
        raise OSError("no memory")

    session.before = fail
    (only,) = finished(engine())
    assert only.error is not None
    assert only.error.code == "INTERNAL"
    assert str(only.error) == "INTERNAL: the engine failed on the prompt: OSError: no memory"


def test_an_engine_that_fails_later_says_so_in_the_last_piece(
    engine: Callable[..., Sender], session: FakeSession
) -> None:
    seen = threading.Event()

    def fail(kind: str, _slots: tuple[int, ...]) -> None:
        if kind == "decode":
            assert seen.wait(WAIT)
            raise OSError("the disk is gone")

    session.before = fail
    sender = engine()
    assert eventually(lambda: bool(sender.sent))
    seen.set()
    *pieces, last = finished(sender)
    assert last.error is None
    assert last.tensors["finish_reason"].tolist() == [b"error"]
    assert last.tensors["error_code"].tolist() == [b"INTERNAL"]
    assert b"the disk is gone" in last.tensors["error_message"][0]
    assert last.tensors["completion_tokens"].tolist() == [1]
    assert len(pieces) == 1


def test_over_the_queue_the_caller_is_told_with_a_code_that_says_come_back(
    engine: Callable[..., Sender], session: FakeSession
) -> None:
    go_on = threading.Event()

    def hold(_kind: str, _slots: tuple[int, ...]) -> None:
        assert go_on.wait(WAIT)

    session.before = hold
    senders = [engine() for _ in range(4)]
    # nobody can be answered, so whoever is done was refused: two of four, with one slot and a queue of one
    assert eventually(lambda: sum(sender.done.is_set() for sender in senders) == 2)
    errors = [sender.sent[0].error for sender in senders if sender.done.is_set()]
    for error in errors:
        assert error is not None
        assert error.code == "UNAVAILABLE"
        assert str(error).startswith("RESOURCE_EXHAUSTED: ")
    go_on.set()
    for sender in senders:
        finished(sender)


def test_a_caller_that_has_gone_frees_the_slot(engine: Callable[..., Sender]) -> None:
    endless = engine(max_tokens=1 << 14)
    waiting = engine(max_tokens=2)
    endless.cancelled = True
    assert finished(endless)[-1].tensors["finish_reason"].tolist() == [b"cancelled"]
    assert finished(waiting)[-1].tensors["finish_reason"].tolist() == [b"length"]


@pytest.fixture
def roomy() -> FakeSession:
    return FakeSession(slots=3, max_context=1 << 15, vocab_size=256)


@pytest.fixture
def several(roomy: FakeSession) -> Iterator[Callable[..., Sender]]:
    """Three slots, and answers that differ."""
    with serving(roomy, temperature=np.array([5], np.float32)) as ask:
        yield lambda n, **inputs: ask(n=np.array([n], np.int32), **inputs)


def by_index(sender: Sender) -> dict[int, list[dict[str, Any]]]:
    pieces: dict[int, list[dict[str, Any]]] = {}
    for response in finished(sender):
        assert response.error is None, response.error
        pieces.setdefault(int(response.tensors.get("index", [0])[0]), []).append(response.tensors)
    return pieces


def test_several_answers_share_a_stream_that_ends_with_the_last(several: Callable[..., Sender]) -> None:
    pieces = by_index(several(3, seed=np.array([1], np.uint64)))
    assert sorted(pieces) == [0, 1, 2]
    for answer in pieces.values():
        assert [bytes(piece["finish_reason"][0]) for piece in answer] == [b""] * (len(answer) - 1) + [b"length"]
        assert answer[-1]["completion_tokens"].tolist() == [5]


def test_a_stop_text_ends_only_the_answer_that_it_is_in(several: Callable[..., Sender]) -> None:
    seed = {"seed": np.array([1], np.uint64)}

    def texts(**inputs: Any) -> list[tuple[str, bytes]]:
        answers = by_index(several(3, max_tokens=40, **seed, **inputs))
        return [
            (b"".join(p["text"][0] for p in answers[i]).decode(), answers[i][-1]["finish_reason"][0]) for i in range(3)
        ]

    free = [text for text, _ in texts()]
    stop = next(c for c in free[1][5:] if c not in free[0] + free[2] + "\ufffd")
    stopped = texts(stop=np.array([stop.encode()], np.object_))
    assert stopped == [(free[0], b"length"), (free[1][: free[1].index(stop)], b"stop"), (free[2], b"length")]


def test_a_caller_that_has_gone_frees_every_slot_that_it_had(several: Callable[..., Sender]) -> None:
    endless = several(3, max_tokens=1 << 14)
    endless.cancelled = True
    assert {answer[-1]["finish_reason"][0] for answer in by_index(endless).values()} == {b"cancelled"}
    assert by_index(several(1))[0][-1]["finish_reason"][0] == b"length"


def test_a_failure_of_one_answer_ends_them_all_and_frees_their_slots(
    several: Callable[..., Sender], roomy: FakeSession
) -> None:
    started = threading.Event()

    def spoil(logits: Any) -> Any:
        if started.is_set():
            logits[0] = np.nan
        return logits

    roomy.spoil = spoil
    sender = several(3, max_tokens=1 << 14)
    assert eventually(lambda: len(sender.sent) > 3)
    started.set()
    last = finished(sender)[-1].tensors
    assert (last["finish_reason"][0], last["error_code"][0]) == (b"error", b"INTERNAL")
    roomy.spoil = lambda logits: logits
    # the other two end with the step after the failure
    assert eventually(lambda: finished(several(3))[0].error is None)


def test_more_answers_than_can_wait_are_refused_whole(several: Callable[..., Sender]) -> None:
    endless = several(3, max_tokens=1 << 14)
    assert eventually(lambda: bool(endless.sent))
    (only,) = finished(several(2))
    assert only.error is not None and str(only.error).startswith("RESOURCE_EXHAUSTED: ")
    endless.cancelled = True
    finished(endless)


def test_more_answers_than_slots_are_refused_with_how_many_there_are(several: Callable[..., Sender]) -> None:
    (only,) = finished(several(4))
    assert only.error is not None
    assert str(only.error) == (
        "INVALID_ARGUMENT: n is 4; this server has 3 slots, one for each answer, so allowed is 1 to 3"
    )


def test_a_fault_of_our_own_is_answered_and_logged(
    engine: Callable[..., Sender], capfd: pytest.CaptureFixture[str]
) -> None:
    (only,) = finished(engine(input_ids=np.array(["not", "ids"], dtype=np.object_).view(Broken)))
    assert only.error is not None
    assert only.error.code == "INTERNAL"
    assert "ZeroDivisionError" in str(only.error)
    assert "Traceback" in capfd.readouterr().err


class Broken(np.ndarray):  # type: ignore[type-arg]
    """An array that fails when it is looked at, as nothing that Triton gives does."""

    @property
    def ndim(self) -> int:  # type: ignore[override]
        return 1 // 0

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return np.dtype(np.int64)


def test_a_dead_engine_ends_its_process_after_its_callers_were_told() -> None:
    """The guard, which watches the model processes, then ends the server: test_lifecycle.py."""
    program = (
        "import time; from hermes_deploy.serving import engine_model as m; m.LAST_WORDS = 0.3\n"
        "m.end_process('no such kernel'); print('told', flush=True); time.sleep(30)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 70
    assert ended.stdout == "told\n"
    assert "the engine died: no such kernel" in ended.stderr


def test_tokens_are_merged_for_an_interval_but_the_first_and_the_last_do_not_wait(session: FakeSession) -> None:
    session.before = lambda _kind, _slots: time.sleep(0.001)
    with serving(session, piece_interval=3600, temperature=np.array([0], np.float32)) as ask:
        sender = ask(max_tokens=50)
        assert sender.done.wait(WAIT)
    first, last = (len(response.tensors["token_ids"]) for response in sender.sent)
    assert first < 50 and first + last == 50
