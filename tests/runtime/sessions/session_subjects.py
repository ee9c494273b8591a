"""The sessions that the contract is run on: how each is opened here, and what its answers are compared with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from hermes_deploy import kernels
from hermes_deploy.engines import build_engine, serving_profiles
from hermes_deploy.graphs import GraphSpec, build_decoder, cache_names, save_fused, save_model
from hermes_deploy.machine import gpus, runnable
from hermes_deploy.recipes import load_recipe
from hermes_deploy.runtime.session import Session
from hermes_deploy.runtime.sessions.ort_cpu import OrtCpuSession
from hermes_deploy.runtime.sessions.ort_rows import open_rows_on_cpu
from hermes_deploy.runtime.sessions.row_memory import HostMemory
from hermes_deploy.runtime.sessions.tensorrt import PlanFacts, TensorFacts, open_tensorrt
from hermes_deploy.serving.sessions import plan_facts
from hermes_deploy.targets import TARGETS, Activation, Dialect
from tests.graphs.reference import Reference
from tests.runtime.fake_session import FakeSession, next_token
from tests.runtime.sessions import fake_tensorrt

SLOTS, CONTEXT, VOCAB, CHUNK = 4, 64, 320, 16
FP32, FP16 = 2e-4, 0.05
"""Largest difference of a logit; those of the tiny model have a standard deviation of 1.2."""


@dataclass(frozen=True)
class Subject:
    """`expected`: tokens [n] of one chat to logits [n, vocab] after each of them."""

    session: Session
    tolerance: float
    expected: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]


class Graphs:
    """Graphs of one tiny random Mistral, each made when it is first asked for."""

    def __init__(self, reference: Reference, folder: Path, context: int = CONTEXT) -> None:
        self.reference, self.folder, self._context = reference, folder, context

    def path(self, dialect: Dialect, activation: Activation) -> Path:
        path = self.folder / f"{dialect}-{activation}" / "model.onnx"
        if not path.exists():
            path.parent.mkdir()
            spec = GraphSpec(self.reference.config, dialect, activation, self._context)
            save_model(build_decoder(spec, self.reference.tensors), path)
            if (dialect, activation) == ("ort", "fp32"):
                save_fused(path, path.with_name(kernels.FUSED))
        return path

    def plan(self) -> tuple[Path, PlanFacts]:
        """The tiny model as a plan for the GPU that is here; skips where there is none that can run it."""
        reasons = {name: runnable(target) for name, target in TARGETS.items() if target.engine == "tensorrt"}
        here = [name for name, reason in reasons.items() if not reason]
        if not here:
            found = [f"sm{gpu.compute_capability[0]}{gpu.compute_capability[1]}" for gpu in gpus()]
            pytest.skip("; ".join(reasons[name] for name in reasons if name in found) or reasons["sm89"])
        folder = self.folder / "engine"
        files = build_engine(
            self.path("portable", "fp16"),
            [TARGETS[here[0]]],
            folder,
            recipe=load_recipe("fp16"),
            profiles=serving_profiles(CHUNK, SLOTS),
        )
        return files.plan, plan_facts(files.sidecar)


def stand_in_facts(graphs: Graphs, prefill: tuple[int, int], rows: tuple[int, int]) -> tuple[Path, PlanFacts]:
    """A "plan" for `fake_tensorrt`, with a prefill profile of those tokens and rows of logits."""
    config = graphs.reference.config
    graph = graphs.path("portable", "fp32")
    plan = graph.parent / "engine.plan"
    plan.write_text(str(graph))
    cache = TensorFacts("fp32", ("batch", config.kv_heads, CONTEXT, config.head_dim))
    caches = cache_names(config.layers)
    tokens = TensorFacts("int64", ("batch", "seq"))
    one = (1, 1)
    facts = PlanFacts(
        flavour="tensorrt_rtx",
        version=fake_tensorrt.__version__,
        compute_capabilities=((8, 9),),
        inputs={
            "input_ids": tokens,
            "position_ids": tokens,
            "write_indices": TensorFacts("int64", ("batch",)),
            "logits_positions": TensorFacts("int64", ("batch", "rows")),
            **{past: cache for past, _ in caches},
        },
        outputs={
            "logits": TensorFacts("fp32", ("batch", "rows", config.vocab_size)),
            **{present: cache for _, present in caches},
        },
        aliases={present: past for past, present in caches},
        profiles={
            "prefill": {"batch": one, "seq": prefill, "rows": rows},
            "decode": {"batch": (1, SLOTS), "seq": one, "rows": one},
        },
    )
    fake_tensorrt.Runtime.profiles = [dict(profile) for profile in facts.profiles.values()]
    return plan, facts


def open_stand_in(graphs: Graphs, prefill: tuple[int, int], rows: tuple[int, int]) -> Session:
    plan, facts = stand_in_facts(graphs, prefill, rows)
    return open_tensorrt(plan, facts, slots=SLOTS, trt=sys.modules[fake_tensorrt.__name__], memory=HostMemory())


def open_fake(_: Graphs) -> Session:
    return FakeSession(slots=SLOTS, max_context=CONTEXT, vocab_size=VOCAB, prefill_chunk=CHUNK)


def open_ort_cpu(graphs: Graphs) -> Session:
    return OrtCpuSession(graphs.path("ort", "fp32"), slots=SLOTS, threads=1, prefill_chunk=CHUNK, own_kernels=False)


def open_own_kernels(graphs: Graphs) -> Session:
    """Of an unquantized model only attention is ours."""
    if reason := kernels.trouble():
        pytest.skip(reason)
    session = OrtCpuSession(graphs.path("ort", "fp32"), slots=SLOTS, threads=2, prefill_chunk=CHUNK)
    assert not session.without_kernels
    return session


def open_rows(dialect: Dialect, activation: Activation) -> Callable[[Graphs], Session]:
    def open_with(graphs: Graphs) -> Session:
        return open_rows_on_cpu(graphs.path(dialect, activation), dialect=dialect, slots=SLOTS, prefill_chunk=CHUNK)

    return open_with


def open_cuda(graphs: Graphs) -> Session:
    if reason := runnable(TARGETS["cuda"]):
        pytest.skip(reason)
    from hermes_deploy.runtime.sessions.ort_cuda import open_ort_cuda

    return open_ort_cuda(graphs.path("ort", "fp16"), slots=SLOTS, prefill_chunk=CHUNK)


def open_real_tensorrt(graphs: Graphs) -> Session:
    plan, facts = graphs.plan()
    return open_tensorrt(plan, facts, slots=SLOTS)


SUBJECTS: dict[str, tuple[Callable[[Graphs], Session], float]] = {
    "fake": (open_fake, FP32),
    "ort-cpu": (open_ort_cpu, FP32),
    "own-kernels": (open_own_kernels, FP32),
    "ort-cuda's-rows-on-cpu": (open_rows("ort", "fp32"), FP32),
    "ort-cuda's-rows-on-cpu-fp16": (open_rows("ort", "fp16"), FP16),
    "portable-rows-on-cpu": (open_rows("portable", "fp32"), FP32),
    "portable-rows-on-cpu-fp16": (open_rows("portable", "fp16"), FP16),
    "tensorrt-stand-in": (lambda graphs: open_stand_in(graphs, (1, CHUNK), (1, 1)), FP32),
    "tensorrt-stand-in-with-wide-profiles": (lambda graphs: open_stand_in(graphs, (6, CHUNK), (2, 3)), FP32),
    "ort-cuda": (open_cuda, FP16),
    "tensorrt": (open_real_tensorrt, FP16),
}


def open_subject(name: str, graphs: Graphs) -> Subject:
    opener, tolerance = SUBJECTS[name]
    if name == "fake":
        return Subject(opener(graphs), tolerance, fake_logits)
    return Subject(opener(graphs), tolerance, lambda tokens: graphs.reference.logits(tokens[np.newaxis])[0])


def fake_logits(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    logits = np.zeros((len(tokens), VOCAB), dtype=np.float32)
    for end in range(1, len(tokens) + 1):
        logits[end - 1, next_token(tokens[:end], VOCAB)] = 10.0
    return logits
