"""The CPU session says what transformers says, whichever rows a step names, and touches no other row."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hermes_deploy.errors import ArtifactError, RequestError, ServeError
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.runtime.sessions import ort_cpu
from hermes_deploy.runtime.sessions.ort_cpu import OrtCpuSession, physical_cores
from tests.graphs.reference import Reference, make_reference

TOLERANCE = 2e-4
SLOTS = 8
BUILT = 64


@pytest.fixture(scope="module", params=[None, 7], ids=["full-attention", "sliding-window"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference(tmp_path_factory.mktemp("checkpoint"), sliding_window=request.param)


@pytest.fixture(scope="module")
def model(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    save_model(build_decoder(GraphSpec(reference.config, "ort", "fp32", BUILT), reference.tensors), path)
    return path


@pytest.fixture
def session(model: Path) -> OrtCpuSession:
    return OrtCpuSession(model, slots=SLOTS, threads=1, prefill_chunk=16)


def chats(rows: int = SLOTS, length: int = BUILT) -> npt.NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, 320, (rows, length))


def read(session: OrtCpuSession, slot: int, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Prefills a whole prompt, chunk by chunk; logits of its last token."""
    for start in range(0, len(tokens), session.prefill_chunk):
        logits = session.prefill(slot, tokens[start : start + session.prefill_chunk], start)
    return logits[0].copy()


def test_a_prompt_of_many_chunks_gets_the_logits_of_its_last_token(
    session: OrtCpuSession, reference: Reference
) -> None:
    text = chats(1)
    expected = reference.logits(text)[0]
    for length in (1, 16, 17, BUILT):
        assert np.abs(read(session, 5, text[0, :length]) - expected[length - 1]).max() < TOLERANCE


@pytest.mark.parametrize(
    "steps",
    [
        [[0, 1, 2, 3, 4, 5, 6, 7]] * 3,
        [[3]] * 3,
        [[7, 0], [0, 7], [0]],
        [[4, 2, 6], [6, 1, 0, 2], [5]],
        [[0, 4], [0, 5], [1, 3, 5, 7]],
    ],
    ids=str,
)
def test_any_set_of_rows_in_any_order_decodes_and_every_other_row_stays_intact(
    session: OrtCpuSession, reference: Reference, steps: list[list[int]]
) -> None:
    text = chats()
    expected = reference.logits(text)
    lengths = np.array([5, 17, 1, 30, 8, 2, 40, 23])
    for slot, length in enumerate(lengths):
        assert np.abs(read(session, slot, text[slot, :length]) - expected[slot, length - 1]).max() < TOLERANCE
    for slots in [*steps, list(range(SLOTS))]:
        logits = session.decode(slots, text[slots, lengths[slots]], lengths[slots])
        assert logits.shape == (len(slots), 320)
        assert np.abs(logits - expected[slots, lengths[slots]]).max() < TOLERANCE
        lengths[slots] += 1


def test_a_chat_that_is_being_read_survives_the_decoding_of_its_neighbours(
    session: OrtCpuSession, reference: Reference
) -> None:
    text = chats(3)
    expected = reference.logits(text)
    lengths = np.array([4, 0, 9])
    for slot in (0, 2):
        read(session, slot, text[slot, : lengths[slot]])
    for start in range(0, 48, 16):
        logits = session.prefill(1, text[1, start : start + 16], start)
        session.decode([0, 2], text[[0, 2], lengths[[0, 2]]], lengths[[0, 2]])
        lengths[[0, 2]] += 1
    assert np.abs(logits - expected[1, 47]).max() < TOLERANCE
    assert np.abs(session.decode([1], text[1, 48:49], np.array([48])) - expected[1, 48]).max() < TOLERANCE


def test_a_new_chat_does_not_see_the_one_before_it_in_its_slot(session: OrtCpuSession, reference: Reference) -> None:
    text = chats(2)
    read(session, 0, text[0])
    assert np.abs(read(session, 0, text[1, :20]) - reference.logits(text[1:, :20])[0, -1]).max() < TOLERANCE


def test_a_prompt_can_go_on_from_the_prefix_that_is_in_its_slot(session: OrtCpuSession, reference: Reference) -> None:
    first, second = chats(2, 30)
    second[:12] = first[:12]
    read(session, 0, first)
    logits = session.prefill(0, second[12:24], 12)
    assert np.abs(logits - reference.logits(second[None, :24])[0, -1]).max() < TOLERANCE


def test_a_chunk_gives_the_logits_of_as_many_tokens_as_are_asked_for(
    session: OrtCpuSession, reference: Reference
) -> None:
    text = chats(1, 16)
    expected = reference.logits(text)[0]
    assert session.prefill(2, text[0], 0, 0).shape == (0, 320)
    for wanted in (1, 5, 16):
        logits = session.prefill(2, text[0], 0, wanted)
        assert logits.shape == (wanted, 320)
        assert np.abs(logits - expected[16 - wanted :]).max() < TOLERANCE


def test_a_copied_prefix_goes_on_as_if_it_had_been_read(session: OrtCpuSession, reference: Reference) -> None:
    first, second = chats(2, 30)
    second[:12] = first[:12]
    read(session, 6, first)
    session.copy(6, 1, 0, 12)
    logits = session.prefill(1, second[12:24], 12)
    assert np.abs(logits - reference.logits(second[None, :24])[0, -1]).max() < TOLERANCE
    # and the row that was copied from goes on too
    more = session.decode([6], np.array([5]), np.array([30]))
    assert np.abs(more[0] - reference.logits(np.append(first, 5)[None])[0, -1]).max() < TOLERANCE


def test_the_engine_writes_the_cache_where_it_reads_it(session: OrtCpuSession) -> None:
    """Equal pointers of past and present: nothing is copied, however long the cache is."""
    for slots in ([2], [0, 1, 2], [7, 3]):
        session.decode(slots, np.full(len(slots), 5), np.zeros(len(slots), dtype=np.int64))
        step = session._step(tuple(slots))
        addresses = step._view.addresses if step._view else session._caches.memory.neighbours(slots[0])
        outputs = step._binding.get_outputs()[: len(addresses)]
        assert sorted(value.data_ptr() for value in outputs) == sorted(addresses)


def test_a_prompt_read_beside_decodes_of_other_rows_gives_the_same_bits_as_taking_turns(model: Path) -> None:
    def answers(*, overlapping: bool) -> tuple[npt.NDArray[np.float32], list[npt.NDArray[np.float32]]]:
        session = OrtCpuSession(model, slots=4, threads=2, prefill_chunk=16)
        assert session.overlaps
        text = chats(4)
        for slot in (0, 2):
            session.prefill(slot, text[slot, :10], 0)
        read: list[npt.NDArray[np.float32]] = []

        def read_in() -> None:
            for start in range(0, 48, 16):
                read[:] = [session.prefill(1, text[1, start : start + 16], start).copy()]

        reading = threading.Thread(target=read_in)
        reading.start()
        if not overlapping:
            reading.join()
        decoded = [session.decode([2, 0], text[[2, 0], at], np.array([at, at])).copy() for at in range(10, 50)]
        session.copy(0, 3, 0, 40)
        decoded.append(session.decode([3], text[3, :1], np.array([40])).copy())
        reading.join()
        return read[0], decoded

    alone, beside = answers(overlapping=False), answers(overlapping=True)
    np.testing.assert_array_equal(alone[0], beside[0])
    for one, other in zip(alone[1], beside[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_many_different_sets_of_rows_keep_a_bounded_number_of_mappings(
    session: OrtCpuSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_cpu, "_MAX_MAPPINGS", 40)
    rng = np.random.default_rng(0)
    for _ in range(30):
        slots = rng.permutation(SLOTS)[:3].tolist()
        session.decode(slots, np.array([5, 6, 7]), np.array([0, 0, 0]))
        assert Path("/proc/self/maps").read_text().count("hermes-kv") <= 40 + 4 * 3 + 8


def test_a_shorter_context_than_built_gives_the_same_answers(model: Path, reference: Reference) -> None:
    session = OrtCpuSession(model, slots=2, max_context=24, threads=1, prefill_chunk=16)
    text = chats(1, 24)
    assert np.abs(read(session, 1, text[0]) - reference.logits(text)[0, -1]).max() < TOLERANCE
    with pytest.raises(RequestError, match="24 tokens") as refused:
        session.decode([1], np.array([1]), np.array([24]))
    assert refused.value.code == "OUT_OF_RANGE"


def test_a_longer_context_than_built_is_refused_with_what_to_do(model: Path) -> None:
    with pytest.raises(ServeError, match=r"built for 2 to 64.*--max-context"):
        OrtCpuSession(model, slots=1, max_context=65)


@pytest.mark.parametrize(
    ("slots", "tokens", "positions"),
    [
        ([SLOTS], [1], [0]),
        ([-1], [1], [0]),
        ([], [], []),
        ([0, 0], [1, 1], [0, 0]),
        ([0], [320], [0]),
        ([0], [-1], [0]),
        ([0], [1], [-1]),
        ([0, 1], [1], [0]),
        ([0], [], [0]),
    ],
)
def test_a_step_that_makes_no_sense_is_refused(
    session: OrtCpuSession, slots: list[int], tokens: list[int], positions: list[int]
) -> None:
    with pytest.raises(RequestError):
        session.decode(slots, np.array(tokens, dtype=np.int64), np.array(positions, dtype=np.int64))


def test_a_prefill_longer_than_a_chunk_is_refused(session: OrtCpuSession) -> None:
    with pytest.raises(RequestError, match="1 to 16"):
        session.prefill(0, np.zeros(17, dtype=np.int64), 0)
    with pytest.raises(RequestError, match="0 to 3"):
        session.prefill(0, np.zeros(3, dtype=np.int64), 0, 4)


def test_threads_never_exceed_the_cores_this_process_may_use() -> None:
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))


def test_the_graph_of_another_dialect_is_refused(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    save_model(build_decoder(GraphSpec(reference.config, "portable", "fp32", BUILT), reference.tensors), path)
    with pytest.raises(ArtifactError, match="portable"):
        OrtCpuSession(path, slots=1)


@pytest.mark.parametrize("damage", ["no model", "no weights", "cut model", "cut weights"])
def test_a_damaged_artifact_is_a_clear_error(model: Path, damage: str, tmp_path: Path) -> None:
    files: dict[str, Any] = {name: (model.parent / name).read_bytes() for name in ("model.onnx", "model.onnx.data")}
    kind, which = damage.split()
    name = "model.onnx" if which == "model" else "model.onnx.data"
    files[name] = None if kind == "no" else files[name][: len(files[name]) // 2]
    for file, content in files.items():
        if content is not None:
            (tmp_path / file).write_bytes(content)
    with pytest.raises(ArtifactError, match="Build the artifact again"):
        OrtCpuSession(tmp_path / "model.onnx", slots=1)


def test_serving_needs_none_of_the_build_packages() -> None:
    program = (
        "import sys, hermes_deploy.runtime.sessions.ort_cpu\n"
        "print([m for m in ('onnx', 'onnx_ir', 'torch', 'transformers', 'ml_dtypes') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
