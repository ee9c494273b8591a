"""What GPU sessions say where there is no GPU, what they bind, and that the calls of TensorRT and CUDA exist."""

from __future__ import annotations

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermes_deploy.engines import build_engine, serving_profiles
from hermes_deploy.errors import ArtifactError, ServeError
from hermes_deploy.machine import gpus, installed
from hermes_deploy.recipes import load_recipe
from hermes_deploy.runtime.sessions.cuda_memory import CudaMemory
from hermes_deploy.runtime.sessions.ort_cuda import open_ort_cuda
from hermes_deploy.runtime.sessions.ort_rows import open_rows_on_cpu
from hermes_deploy.runtime.sessions.row_memory import HostMemory
from hermes_deploy.runtime.sessions.tensorrt import PlanFacts, TensorFacts, TensorRtRows, open_tensorrt
from hermes_deploy.serving.sessions import plan_facts
from hermes_deploy.targets import target
from tests.graphs.reference import make_reference
from tests.runtime.sessions import fake_tensorrt
from tests.runtime.sessions.session_subjects import CHUNK, CONTEXT, SLOTS, Graphs, open_stand_in, stand_in_facts

STAND_IN = sys.modules[fake_tensorrt.__name__]
no_gpu = pytest.mark.skipif(bool(gpus()), reason="this machine has a GPU")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    reference = make_reference(tmp_path_factory.mktemp("checkpoint"))
    return Graphs(reference, tmp_path_factory.mktemp("graphs"))


@pytest.fixture
def stand_in(graphs: Graphs) -> tuple[Path, PlanFacts]:
    return stand_in_facts(graphs, (1, CHUNK), (1, 1))


def test_past_and_present_of_every_cache_are_set_to_the_row_that_is_run(graphs: Graphs) -> None:
    session: Any = open_stand_in(graphs, (1, CHUNK), (1, 1))
    engine: TensorRtRows = session._engine
    session.prefill(2, np.arange(5), 0)
    session.decode([3, 2], np.array([1, 2]), np.array([0, 5]))
    for kind, row in (("prefill", 2), ("decode", 2)):
        context: Any = engine._contexts[kind]  # type: ignore[index]
        for name in engine.caches.names:
            assert context.addresses[name] == engine.caches.address(name, row)
            assert context.addresses[name.replace("past", "present")] == context.addresses[name]
    session.close()


def test_an_input_that_tensorrt_reads_on_the_host_stays_there(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    device: Any = open_stand_in(graphs, (1, CHUNK), (1, 1))
    monkeypatch.setattr(fake_tensorrt.Runtime, "hosted", ("write_indices", "logits_positions"))
    host: Any = open_stand_in(graphs, (1, CHUNK), (1, 1))
    assert host._engine._small["write_indices"]._on_host
    assert not host._engine._small["input_ids"]._on_host
    for session in (device, host):
        session.prefill(1, np.arange(7), 0)
    step = ([1], np.array([5]), np.array([7]))
    np.testing.assert_array_equal(host.decode(*step), device.decode(*step))


def test_what_tensorrt_says_when_it_refuses_reaches_the_error(graphs: Graphs) -> None:
    session: Any = open_stand_in(graphs, (1, CHUNK), (1, 1))
    session._engine.caches._start["past_key_0"] += 2
    with pytest.raises(ServeError, match=r"address of past_key_0: .*not aligned to 256 bytes"):
        session.prefill(0, np.arange(3), 0)


def test_a_plan_that_does_not_open_is_an_artifact_error_with_tensorrts_words(
    stand_in: tuple[Path, PlanFacts], tmp_path: Path
) -> None:
    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"junk" * 9)
    with pytest.raises(ArtifactError, match=r"EXPECTED_MAGIC_TAG.*Build the artifact for this GPU"):
        open_tensorrt(plan, stand_in[1], slots=1, trt=STAND_IN, memory=HostMemory())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "9.9"}, "9.9 and opens with that version only"),
        ({"profiles": {"decode": {}}}, "needed are prefill and decode"),
        ({"inputs": {}}, "inputs are"),
        ({"aliases": {}}, "0 are updated in place"),
        ({"aliases": {"present_key_0": "past_value_0"}}, "1 are updated in place"),
    ],
)
def test_a_sidecar_that_does_not_fit_is_refused(
    stand_in: tuple[Path, PlanFacts], change: dict[str, Any], words: str
) -> None:
    plan, said = stand_in
    with pytest.raises((ArtifactError, ServeError), match=words):
        open_tensorrt(plan, replace(said, **change), slots=1, trt=STAND_IN, memory=HostMemory())


def test_aliases_of_the_plan_itself_are_held_against_the_sidecar(stand_in: tuple[Path, PlanFacts]) -> None:
    plan, said = stand_in
    swapped = {"present_key_0": "past_value_0", "present_value_0": "past_key_0"}
    with pytest.raises(ArtifactError, match=r"writes present_.*its sidecar says"):
        open_tensorrt(
            plan, replace(said, aliases={**said.aliases, **swapped}), slots=1, trt=STAND_IN, memory=HostMemory()
        )


def test_rows_that_tensorrt_cannot_address_are_refused_with_what_to_build(stand_in: tuple[Path, PlanFacts]) -> None:
    plan, said = stand_in
    odd = {
        name: TensorFacts(tensor.dtype, ("batch", 2, 63, 16)) if name.startswith("past") else tensor
        for name, tensor in said.inputs.items()
    }
    said = replace(said, inputs={name: replace(t, dtype="fp16") if "past" in name else t for name, t in odd.items()})
    with pytest.raises(ArtifactError, match=r"4032 bytes.*multiple of 8"):
        open_tensorrt(plan, said, slots=2, trt=STAND_IN, memory=HostMemory())


@pytest.mark.parametrize(("limits", "words"), [({"slots": SLOTS + 1}, "slots"), ({"max_context": 65}, "2 to 64")])
def test_limits_beyond_the_build_are_refused(
    stand_in: tuple[Path, PlanFacts], limits: dict[str, int], words: str
) -> None:
    with pytest.raises(ServeError, match=words):
        open_tensorrt(*stand_in, **{"slots": 1, **limits}, trt=STAND_IN, memory=HostMemory())


def test_a_shorter_context_is_enforced_and_changes_no_answer(graphs: Graphs) -> None:
    tokens = np.arange(10)
    for dialect in ("ort", "portable"):
        path = graphs.path(dialect, "fp32")
        short = open_rows_on_cpu(path, dialect=dialect, slots=2, max_context=24)  # type: ignore[arg-type]
        assert (short.max_context, short.prefill_chunk) == (24, 24)
        expected = graphs.reference.logits(tokens[np.newaxis])[0, -1]
        assert np.abs(short.prefill(1, tokens, 0)[0] - expected).max() < 2e-4
        short.close()


def test_a_real_plan_and_its_sidecar_say_all_that_a_session_asks(graphs: Graphs, tmp_path: Path) -> None:
    files = build_engine(
        graphs.path("portable", "fp16"),
        [target("sm89")],
        tmp_path,
        recipe=load_recipe("fp16"),
        profiles=serving_profiles(CHUNK, SLOTS),
    )
    said = plan_facts(files.sidecar)
    facts = said.engine_facts()
    assert (facts.trouble, facts.vocab_size, facts.cache_length) == ("", 320, CONTEXT)
    assert (facts.prefill.tokens, facts.decode.batch) == ((1, CHUNK), (1, SLOTS))
    assert said.compute_capabilities == ((8, 9),)
    assert len(said.caches) == 2 * graphs.reference.config.layers
    if not gpus():
        # the real package, on the real file: it cannot be opened here, and the session says so in its words
        with pytest.raises((ArtifactError, ServeError), match=r"driver|GPU|CUDA"):
            open_tensorrt(files.plan, said, slots=1, memory=HostMemory())
        with pytest.raises(ServeError, match="CUDA driver"):
            open_tensorrt(files.plan, said, slots=1)


def test_every_call_of_the_stand_in_exists_in_the_real_package() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    pairs = ((fake_tensorrt.Context, trt.IExecutionContext), (fake_tensorrt.Engine, trt.ICudaEngine))
    for ours, theirs in (*pairs, (fake_tensorrt.Runtime, trt.Runtime), (fake_tensorrt.ILogger, trt.ILogger)):
        names = [name for name in vars(ours) if not name.startswith("_") and name not in ("profiles", "hosted")]
        assert names
        assert [name for name in names if not hasattr(theirs, name)] == []
    assert {"DEVICE", "HOST"} <= set(trt.TensorLocation.__members__)
    assert set(vars(fake_tensorrt.ILogger.Severity)) == set(trt.ILogger.Severity.__members__)


@no_gpu
@pytest.mark.skipif(installed("cuda-bindings") is None, reason="cuda-bindings is not installed")
def test_without_a_driver_cuda_says_so_and_the_error_carries_its_words() -> None:
    with pytest.raises(ServeError, match=r"cudaGetDeviceCount failed: CUDA driver version is insufficient.*nvidia-smi"):
        CudaMemory()


class ScriptedCuda:
    """cuda.bindings.runtime with a GPU of compute capability 8.6 behind one of 7.5; its memory is the host's."""

    def __init__(self, real: Any) -> None:
        self.real, self.memory, self.calls = real, HostMemory(), []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda") or not callable(found := getattr(self.real, name)) or isinstance(found, type):
            return getattr(self.real, name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return (self.real.cudaError_t.cudaSuccess, *self._answer(name, *arguments))

        return call

    def _answer(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        major = self.real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
        if name == "cudaDeviceGetAttribute":
            what, index = arguments
            return ((7, 8)[index] if what == major else (5, 6)[index],)
        if name in ("cudaMalloc", "cudaHostAlloc"):
            return (self.memory.allocate(arguments[0]),)
        if name == "cudaMemcpy2DAsync":
            target, pitch, source, other, width, height, *_ = arguments
            assert pitch == other
            self.memory.copy(target, source, pitch, width, height)
        return {"cudaGetDeviceCount": (2,), "cudaStreamCreateWithFlags": (77,)}.get(name, ())


def test_the_gpu_that_the_plan_was_built_for_is_used_and_everything_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted = ScriptedCuda(pytest.importorskip("cuda.bindings.runtime"))
    monkeypatch.setattr("hermes_deploy.runtime.sessions.cuda_memory.cuda_runtime", lambda: scripted)
    with pytest.raises(ServeError, match=r"9\.0 is visible; found: 7\.5, 8\.6"):
        CudaMemory([(9, 0)])
    memory = CudaMemory([(8, 9), (8, 6)])
    assert (memory.index, memory.stream) == (1, 77)
    address = memory.allocate(1024)
    host = memory.host(64)
    host[:] = 3
    memory.copy(address + 8, address, 100, 4, 3)
    memory.upload(address, host)
    memory.download(host, address)
    memory.close()
    kinds = scripted.real.cudaMemcpyKind
    assert ("cudaMemcpy2DAsync", address + 8, 100, address, 100, 4, 3, kinds.cudaMemcpyDeviceToDevice, 77) in (
        scripted.calls
    )
    assert ("cudaMemcpyAsync", address, host.ctypes.data, 64, kinds.cudaMemcpyHostToDevice, 77) in scripted.calls
    assert ("cudaMemcpyAsync", host.ctypes.data, address, 64, kinds.cudaMemcpyDeviceToHost, 77) in scripted.calls
    assert ("cudaMemsetAsync", address, 0, 1024, 77) in scripted.calls
    assert [call for call in scripted.calls if "Free" in call[0] or "Destroy" in call[0]] == [
        ("cudaFree", address),
        ("cudaFreeHost", host.ctypes.data),
        ("cudaStreamDestroy", 77),
    ]


@no_gpu
def test_without_the_cuda_provider_nothing_runs_on_the_cpu_instead(graphs: Graphs) -> None:
    with pytest.raises(ServeError, match=r"has no CUDAExecutionProvider.*hermes-deploy\[cuda\]"):
        open_ort_cuda(graphs.path("ort", "fp16"), slots=1)


def test_a_provider_that_onnx_runtime_replaces_is_refused(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    real = ort.get_available_providers()
    if "CUDAExecutionProvider" in real:
        pytest.skip("ONNX Runtime really has CUDA here")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", *real])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    with pytest.warns(UserWarning), pytest.raises(ServeError, match="has been explicitly disabled"):
        open_ort_cuda(graphs.path("ort", "fp16"), slots=1)
    with pytest.warns(UserWarning), pytest.raises(ServeError, match="would run on CPUExecutionProvider instead"):
        open_ort_cuda(graphs.path("ort", "fp16"), slots=1, cpu_nodes=True)


@pytest.mark.parametrize("module", ["ort_cuda", "tensorrt"])
def test_importing_a_gpu_session_needs_neither_cuda_nor_the_build_packages(module: str) -> None:
    importlib.import_module(f"hermes_deploy.runtime.sessions.{module}")
    program = (
        f"import sys, hermes_deploy.runtime.sessions.{module}\n"
        "unwanted = ('onnx', 'onnx_ir', 'torch', 'ml_dtypes', 'tensorrt', 'tensorrt_rtx', 'cuda')\n"
        "print([m for m in unwanted if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
