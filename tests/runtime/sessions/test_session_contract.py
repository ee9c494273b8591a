"""What the token loop relies on, run on every session that this machine can run.

`ort-cuda` and `tensorrt` need a GPU and are skipped with what is missing. All else of those two is
run here too: their session and bindings over the CPU's memory, TensorRT's calls against a stand-in.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.sampling import Sampling
from hermes_deploy.runtime.stream import Generation
from hermes_deploy.runtime.token_loop import TokenLoop
from tests.graphs.reference import make_reference
from tests.runtime.sessions.session_subjects import (
    CHUNK,
    CONTEXT,
    SLOTS,
    SUBJECTS,
    VOCAB,
    Graphs,
    Subject,
    open_subject,
)
from tests.runtime.test_token_loop import collect

Tokens = npt.NDArray[np.int64]


@pytest.fixture(scope="module", params=[None, 7], ids=["full-attention", "sliding-window"])
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    reference = make_reference(tmp_path_factory.mktemp("checkpoint"), sliding_window=request.param)
    return Graphs(reference, tmp_path_factory.mktemp("graphs"))


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, graphs: Graphs) -> Iterator[Subject]:
    if request.param == "fake" and graphs.reference.config.sliding_window:
        pytest.skip("the fake session has no attention")
    opened = open_subject(request.param, graphs)
    yield opened
    opened.session.close()


def chats(rows: int = SLOTS, length: int = CONTEXT) -> Tokens:
    return np.random.default_rng(3).integers(0, VOCAB, (rows, length))


def read(subject: Subject, slot: int, tokens: Tokens, start: int = 0) -> npt.NDArray[np.float32]:
    """Prefills tokens[start:], chunk by chunk; logits [vocab] of the last."""
    session = subject.session
    for first in range(start, len(tokens), session.prefill_chunk):
        chunk = tokens[first : first + session.prefill_chunk]
        last = first + len(chunk) == len(tokens)
        logits = session.prefill(slot, chunk, first, int(last))
    return logits[0]


def close(subject: Subject, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> bool:
    return found.shape == expected.shape and bool(np.abs(found - expected).max() < subject.tolerance)


def test_the_facts_of_a_session_are_those_it_was_opened_with(subject: Subject) -> None:
    session = subject.session
    assert (session.slots, session.max_context, session.vocab_size) == (SLOTS, CONTEXT, VOCAB)
    assert session.prefill_chunk == CHUNK
    assert session.cache_token_bytes > 0


def test_calls_give_float32_logits_of_the_whole_vocabulary(subject: Subject) -> None:
    session = subject.session
    first = session.prefill(1, np.array([5, 6, 7]), 0)
    assert (first.shape, first.dtype) == ((1, VOCAB), np.float32)
    session.prefill(3, np.array([9]), 0)
    both = session.decode([1, 3], np.array([8, 8]), np.array([3, 1]))
    assert (both.shape, both.dtype) == ((2, VOCAB), np.float32)


@pytest.mark.parametrize("count", [1, 2, 7, CHUNK])
def test_a_prefill_gives_logits_of_as_many_last_tokens_as_were_asked_for(subject: Subject, count: int) -> None:
    text = chats()[0, : 3 + count]
    expected = subject.expected(text)[3:]
    for logits in {0, 1, count // 2, count}:
        subject.session.prefill(2, text[:3], 0)
        found = subject.session.prefill(2, text[3:], 3, logits)
        assert found.shape == (logits, VOCAB)
        assert found.dtype == np.float32
        if logits:
            assert close(subject, found, expected[count - logits :])
    # whatever was asked for, all of them were written
    after = subject.session.decode([2], np.array([11]), np.array([3 + count]))[0]
    assert close(subject, after, subject.expected(np.append(text, 11))[-1])


def test_a_prompt_of_any_length_gets_the_logits_of_its_last_token(subject: Subject) -> None:
    text = chats()[1]
    expected = subject.expected(text)
    for length in (1, CHUNK, CHUNK + 1, CONTEXT - 1, CONTEXT):
        assert close(subject, read(subject, 3, text[:length]), expected[length - 1])


def test_a_chat_can_fill_its_row_to_the_last_position(subject: Subject) -> None:
    text = chats()[2]
    expected = subject.expected(text)
    read(subject, 0, text[: CONTEXT - 3])
    assert close(subject, subject.session.prefill(0, text[-3:-1], CONTEXT - 3)[0], expected[-2])
    assert close(subject, subject.session.decode([0], text[-1:], np.array([CONTEXT - 1]))[0], expected[-1])


def test_any_slots_in_any_order_decode_and_every_other_row_stays_intact(subject: Subject) -> None:
    text = chats()
    expected = np.stack([subject.expected(row) for row in text])
    lengths = np.array([5, 17, 1, 30])
    for slot, length in enumerate(lengths):
        assert close(subject, read(subject, slot, text[slot, :length]), expected[slot, length - 1])
    steps = [[0, 1, 2, 3], [3, 0], [0, 2], [2, 0], [1], [3, 1, 0], [1, 3], [2, 3, 0, 1], [3], [0, 3, 2]]
    for slots in [*steps, *reversed(steps)]:
        logits = subject.session.decode(slots, text[slots, lengths[slots]], lengths[slots])
        assert close(subject, logits, expected[slots, lengths[slots]])
        lengths[slots] += 1


def test_calls_of_every_kind_in_any_order_act_on_the_rows_that_they_name(subject: Subject) -> None:
    """A model of the rows says what every call must answer; 60 random calls."""
    rng = np.random.default_rng(8)
    session, rows = subject.session, [np.empty(0, dtype=np.int64) for _ in range(SLOTS)]
    for slot in range(SLOTS):
        rows[slot] = rng.integers(0, VOCAB, int(rng.integers(1, CHUNK)))
        session.prefill(slot, rows[slot], 0)
    for _ in range(60):
        call = rng.choice(["prefill", "decode", "copy", "begin"])
        slot = int(rng.integers(SLOTS))
        room = CONTEXT - len(rows[slot])
        if call == "copy":
            source, count = int(rng.integers(SLOTS)), int(rng.integers(1, CHUNK))
            # the rows may share a beginning already, so only the rest is copied
            start = min(int(rng.integers(0, CHUNK)), len(rows[slot]))
            if source == slot or len(rows[source]) < start + count:
                continue
            if not np.array_equal(rows[source][:start], rows[slot][:start]):
                start = 0
            session.copy(source, slot, start, count)
            rows[slot] = rows[source][: start + count].copy()
        elif call == "begin" or (call == "prefill" and room > 0):
            start = 0 if call == "begin" else int(rng.integers(max(0, len(rows[slot]) - 5), len(rows[slot]) + 1))
            tokens = rng.integers(0, VOCAB, min(int(rng.integers(1, CHUNK + 1)), CONTEXT - start))
            rows[slot] = np.concatenate([rows[slot][:start], tokens])
            wanted = int(rng.integers(0, len(tokens) + 1))
            found = session.prefill(slot, tokens, start, wanted)
            if wanted:
                assert close(subject, found, subject.expected(rows[slot])[-wanted:])
        elif call == "decode":
            slots = [int(s) for s in rng.permutation(SLOTS)[: rng.integers(1, SLOTS + 1)] if len(rows[s]) < CONTEXT]
            if not slots:
                continue
            tokens = rng.integers(0, VOCAB, len(slots))
            positions = np.array([len(rows[s]) for s in slots])
            found = session.decode(slots, tokens, positions)
            for i, s in enumerate(slots):
                rows[s] = np.append(rows[s], tokens[i])
                assert close(subject, found[i], subject.expected(rows[s])[-1])


def test_a_chat_that_is_being_read_survives_the_decoding_of_its_neighbours(subject: Subject) -> None:
    text = chats(3)
    expected = [subject.expected(row) for row in text]
    lengths = np.array([4, 0, 9])
    for slot in (0, 2):
        read(subject, slot, text[slot, : lengths[slot]])
    for start in range(0, 3 * CHUNK, CHUNK):
        logits = subject.session.prefill(1, text[1, start : start + CHUNK], start)[0].copy()
        subject.session.decode([0, 2], text[[0, 2], lengths[[0, 2]]], lengths[[0, 2]])
        lengths[[0, 2]] += 1
    end = 3 * CHUNK
    assert close(subject, logits, expected[1][end - 1])
    found = subject.session.decode([1], text[1, end : end + 1], np.array([end]))[0]
    assert close(subject, found, expected[1][end])


def test_a_new_chat_does_not_see_the_one_before_it_in_its_slot(subject: Subject) -> None:
    text = chats(2)
    read(subject, 0, text[0])
    assert close(subject, read(subject, 0, text[1, :20]), subject.expected(text[1, :20])[-1])


def test_a_copied_prefix_and_the_rest_give_what_the_whole_prompt_gives(subject: Subject) -> None:
    first, second = chats(2, 40)
    second[:21] = first[:21]
    read(subject, 0, first)
    read(subject, 3, chats(3)[2])  # what lay in the row before must not matter
    subject.session.copy(0, 3, 0, 21)
    assert close(subject, read(subject, 3, second, start=21), subject.expected(second)[-1])
    # and the row that was copied from goes on as if nothing had been
    found = subject.session.decode([0], np.array([7]), np.array([40]))[0]
    assert close(subject, found, subject.expected(np.append(first, 7))[-1])


def test_a_copy_in_two_parts_is_a_copy(subject: Subject) -> None:
    text = chats()[0, :30]
    read(subject, 1, text)
    subject.session.copy(1, 2, 0, 13)
    subject.session.copy(1, 2, 13, 17)
    found = subject.session.decode([2, 1], np.array([4, 9]), np.array([30, 30]))
    assert close(subject, found[0], subject.expected(np.append(text, 4))[-1])
    assert close(subject, found[1], subject.expected(np.append(text, 9))[-1])


def test_a_row_that_only_ever_was_copied_into_decodes_beside_any_other(subject: Subject) -> None:
    text = chats()
    read(subject, 0, text[0, :20])
    read(subject, 1, text[1, :6])
    subject.session.copy(0, 3, 0, 20)
    for position in range(20, 23):
        at = np.array([position - 14, position])
        found = subject.session.decode([1, 3], np.array([text[1, at[0]], text[0, at[1]]]), at)
        expected = np.stack([subject.expected(text[1])[at[0]], subject.expected(text[0])[at[1]]])
        assert close(subject, found, expected)


def test_logits_may_be_changed_by_the_caller_and_change_no_later_answer(subject: Subject) -> None:
    text = chats()[3, :12]
    expected = subject.expected(text)
    subject.session.prefill(0, text[:8], 0, 8)[:] = np.nan
    for position in range(8, 12):
        logits = subject.session.decode([0], text[position : position + 1], np.array([position]))
        assert close(subject, logits[0], expected[position])
        logits[:] = np.nan


def test_a_draft_that_was_checked_and_rejected_leaves_no_trace(subject: Subject) -> None:
    """Also where the row is full, in a window that slides, and one rejection after the other."""
    most = subject.session.draft_tokens
    assert 0 <= most < CHUNK
    rng, text = np.random.default_rng(5), chats()[0]
    expected = subject.expected(text)
    read(subject, 2, text[:9])
    position = 9
    while position < CONTEXT:
        count = min(int(rng.integers(0, most + 1)), CONTEXT - position - 1)
        right = int(rng.integers(0, count + 1))
        checked = np.concatenate([text[position : position + 1 + right], rng.integers(0, VOCAB, count - right)])
        found = subject.session.prefill(2, checked, position, len(checked))
        assert close(subject, found[: right + 1], expected[position : position + right + 1])
        position += right + 1
        if position < CONTEXT and rng.integers(2):
            logits = subject.session.decode([2], text[position : position + 1], np.array([position]))
            assert close(subject, logits[0], expected[position])
            position += 1


def test_a_session_checks_drafts_where_one_run_gives_the_logits_of_all_their_tokens(graphs: Graphs) -> None:
    for names, most in (
        # ONNX Runtime's own attention on the CPU rounds otherwise for several tokens; see test_own_kernels
        ("tensorrt-stand-in tensorrt-stand-in-with-wide-profiles ort-cpu", 0),
        ("ort-cuda's-rows-on-cpu portable-rows-on-cpu", CHUNK - 1),
    ):
        for name in names.split():
            session = open_subject(name, graphs).session
            assert session.draft_tokens == most
            session.close()


@pytest.mark.parametrize("name", ["ort-cuda's-rows-on-cpu", "portable-rows-on-cpu"])
def test_answers_with_drafts_are_those_without(name: str, graphs: Graphs) -> None:
    """In fp32 no two tokens are as good as equal. The prompts hold their own answers, as far as a window sees."""
    rng = np.random.default_rng(2)
    begins = [rng.integers(0, 256, 14) for _ in range(3)]
    subject = open_subject(name, graphs)
    prompts = [np.concatenate([begin, alone(subject, begin, 12), begin]) for begin in begins]
    prompts.append(np.tile(begins[0][:5], 3))
    settings = (Sampling(), Sampling(temperature=0.05, seed=1), Sampling(temperature=0.7, top_p=0.9, seed=2))
    found = []
    for speculation in (True, False):
        loop = TokenLoop(subject.session, speculation=speculation)
        found.append([collect(loop.submit(Generation(p, 24, s)))[0] for s in settings for p in prompts])
        assert (loop.metrics.drafted_tokens > 0) == speculation
        loop.close()
        subject = open_subject(name, graphs)
    subject.session.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_batch_of_chats_gets_the_answers_that_each_gets_alone(name: str, graphs: Graphs) -> None:
    subject = open_subject(name, graphs)
    rng = np.random.default_rng(1)
    lengths = zip(rng.integers(1, 40, 10).tolist(), rng.integers(1, 20, 10).tolist(), strict=True)
    asked = [(rng.integers(0, 256, n), m) for n, m in lengths]
    if subject.tolerance > 1e-2:
        pytest.skip("in fp16 two tokens may be as good as equal; the logits themselves are compared above")
    wanted = [alone(subject, prompt, count) for prompt, count in asked]
    loop = TokenLoop(subject.session)
    try:
        streams = [loop.submit(Generation(prompt, count, Sampling())) for prompt, count in asked]
        assert [collect(stream)[0] for stream in streams] == wanted
    finally:
        loop.close()


def alone(subject: Subject, prompt: Tokens, count: int) -> list[int]:
    """Greedy tokens, one chat at a time in row 0."""
    tokens = [int(read(subject, 0, prompt).argmax())]
    while len(tokens) < count:
        position = len(prompt) + len(tokens) - 1
        logits = subject.session.decode([0], np.array(tokens[-1:]), np.array([position]))
        tokens.append(int(logits[0].argmax()))
    return tokens


@pytest.fixture(params=[name for name in SUBJECTS if name != "fake"])
def checked(request: pytest.FixtureRequest, graphs: Graphs) -> Iterator[Subject]:
    """Sessions that take what comes from outside; the fake asserts instead."""
    opened = open_subject(request.param, graphs)
    yield opened
    opened.session.close()


def test_a_decode_that_makes_no_sense_is_refused(checked: Subject) -> None:
    for slots, tokens, positions in (
        ([SLOTS], [1], [0]),
        ([-1], [1], [0]),
        ([], [], []),
        ([0, 0], [1, 1], [0, 0]),
        ([0], [VOCAB], [0]),
        ([0], [-1], [0]),
        ([0], [1], [-1]),
        ([0], [1], [CONTEXT]),
        ([0, 1], [1], [0]),
        ([0], [], [0]),
    ):
        with pytest.raises(RequestError):
            checked.session.decode(slots, np.array(tokens, dtype=np.int64), np.array(positions, dtype=np.int64))


def test_a_prefill_or_a_copy_that_makes_no_sense_is_refused(checked: Subject) -> None:
    session = checked.session
    with pytest.raises(RequestError, match=f"1 to {CHUNK}"):
        session.prefill(0, np.zeros(CHUNK + 1, dtype=np.int64), 0)
    with pytest.raises(RequestError, match=f"1 to {CHUNK}"):
        session.prefill(0, np.zeros(0, dtype=np.int64), 0)
    for slot, token, start, logits in ((SLOTS, 1, 0, 1), (0, VOCAB, 0, 1), (0, 1, -1, 1), (0, 1, 0, 2), (0, 1, 0, -1)):
        with pytest.raises(RequestError):
            session.prefill(slot, np.array([token]), start, logits)
    for source, target, start, count in ((0, SLOTS, 0, 1), (-1, 0, 0, 1), (0, 1, -1, 2), (0, 1, 0, CONTEXT + 1)):
        with pytest.raises(RequestError):
            session.copy(source, target, start, count)


def test_a_position_beyond_the_context_has_a_code_of_its_own(checked: Subject) -> None:
    for call in (
        lambda: checked.session.decode([1], np.array([1]), np.array([CONTEXT])),
        lambda: checked.session.prefill(1, np.array([1, 2]), CONTEXT - 1),
    ):
        with pytest.raises(RequestError, match=f"{CONTEXT} tokens") as refused:
            call()
        assert refused.value.code == "OUT_OF_RANGE"
