"""What the token loop relies on, run on the fake engine and on the real one: batching changes no answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.runtime.ort_cpu import OrtCpuSession
from hermes_deploy.runtime.sampling import Sampling
from hermes_deploy.runtime.session import Session
from hermes_deploy.runtime.stream import Generation
from hermes_deploy.runtime.token_loop import TokenLoop
from tests.graphs.reference import make_reference
from tests.runtime.fake_session import FakeSession
from tests.runtime.test_token_loop import collect

SLOTS, CONTEXT, VOCAB = 4, 64, 320


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reference = make_reference(tmp_path_factory.mktemp("checkpoint"))
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    save_model(build_decoder(GraphSpec(reference.config, "ort", "fp32", CONTEXT), reference.tensors), path)
    return path


@pytest.fixture(params=["fake", "ort"])
def session(request: pytest.FixtureRequest, graph: Path) -> Session:
    if request.param == "fake":
        return FakeSession(slots=SLOTS, max_context=CONTEXT, vocab_size=VOCAB, prefill_chunk=16)
    return OrtCpuSession(graph, slots=SLOTS, threads=1, prefill_chunk=16)


def alone(session: Session, prompt: npt.NDArray[np.int64], count: int) -> list[int]:
    """Greedy tokens, one chat at a time in row 0."""
    for start in range(0, len(prompt), session.prefill_chunk):
        logits = session.prefill(0, prompt[start : start + session.prefill_chunk], start)
    tokens = [int(logits.argmax())]
    while len(tokens) < count:
        position = len(prompt) + len(tokens) - 1
        tokens.append(int(session.decode([0], np.array(tokens[-1:]), np.array([position]))[0].argmax()))
    return tokens


def test_calls_give_float32_logits_of_the_whole_vocabulary(session: Session) -> None:
    first = session.prefill(1, np.array([5, 6, 7]), 0)
    session.prefill(3, np.array([9]), 0)
    both = session.decode([1, 3], np.array([8, 8]), np.array([3, 1]))
    assert (first.shape, both.shape) == ((VOCAB,), (2, VOCAB))
    assert first.dtype == both.dtype == np.float32


def test_a_batch_of_chats_gets_the_answers_that_each_gets_alone(session: Session) -> None:
    rng = np.random.default_rng(1)
    lengths = zip(rng.integers(1, 40, 10).tolist(), rng.integers(1, 20, 10).tolist(), strict=True)
    asked = [(rng.integers(0, 256, n), m) for n, m in lengths]
    wanted = [alone(session, prompt, count) for prompt, count in asked]
    loop = TokenLoop(session)
    try:
        streams = [loop.submit(Generation(prompt, count, Sampling())) for prompt, count in asked]
        assert [collect(stream)[0] for stream in streams] == wanted
    finally:
        loop.close()
