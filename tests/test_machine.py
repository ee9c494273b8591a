"""What can be served here is said truthfully: every missing part is named with what installs it."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from hermes_deploy import machine
from hermes_deploy.machine import Gpu, Package, provider_problem, runnable, serveable
from hermes_deploy.targets import TARGETS

L4 = Gpu("NVIDIA L4", (8, 9))
Machine = Callable[..., None]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with these GPUs, packages, TensorRT and CUDA provider."""

    def make(gpus: tuple[Gpu, ...] = (), packages: tuple[str, ...] = (), tensorrt: str = "", cuda: str = "") -> None:
        monkeypatch.setattr(machine, "gpus", lambda: gpus)
        monkeypatch.setattr(machine, "installed", lambda name: "1" if name in packages else None)
        monkeypatch.setattr(machine, "provider_problem", lambda _: cuda)
        broken = Package("", "the package is not installed", present=False)
        monkeypatch.setattr(machine, "tensorrt_package", lambda name: Package("1") if name == tensorrt else broken)

    return make


def test_the_cpu_needs_nothing(here: Machine) -> None:
    here()
    assert runnable(TARGETS["cpu"]) == ""


def test_cuda_needs_a_gpu_the_gpu_package_and_a_way_to_its_memory_and_all_are_named_at_once(here: Machine) -> None:
    here()
    reason = runnable(TARGETS["cuda"])
    for words in ("no NVIDIA GPU", "onnxruntime-gpu is not installed", "hermes-deploy[cuda]", "cuda-bindings"):
        assert words in reason
    here((L4,), ("onnxruntime-gpu", "cuda-bindings"))
    assert runnable(TARGETS["cuda"]) == ""


def test_a_cuda_provider_that_does_not_really_run_is_not_believed(here: Machine) -> None:
    here((L4,), ("onnxruntime-gpu", "cuda-bindings"), cuda="libcudnn.so.9: cannot open shared object file")
    assert "cannot use CUDA here: libcudnn.so.9" in runnable(TARGETS["cuda"])
    here((L4,), ("onnxruntime-gpu", "onnxruntime", "cuda-bindings"))
    assert "overwrite each other" in runnable(TARGETS["cuda"])


def test_a_tensorrt_target_needs_its_own_gpu(here: Machine) -> None:
    here((L4,), ("cuda-bindings",), tensorrt="tensorrt_rtx")
    assert runnable(TARGETS["sm89"]) == ""
    assert "needs a GPU of sm86; found: NVIDIA L4 (sm89)" in runnable(TARGETS["sm86"])


def test_a_tensorrt_target_needs_a_package_that_loads(here: Machine) -> None:
    here((L4,), ("cuda-bindings",))
    reason = runnable(TARGETS["sm89"])
    assert "hermes-deploy[tensorrt]" in reason
    assert "hermes-deploy[tensorrt-full]" in reason
    here((Gpu("NVIDIA H100", (9, 0)),), ("cuda-bindings",), tensorrt="tensorrt_rtx")
    assert "hermes-deploy[tensorrt-full]" in runnable(TARGETS["sm90"])


def test_serveable_says_why_not_and_knows_only_its_targets(here: Machine) -> None:
    here()
    assert "no NVIDIA GPU" in serveable("sm120")
    assert "this version knows no such target" in serveable("sm130")


def test_a_provider_is_tried_with_a_real_graph_in_a_process_of_its_own() -> None:
    onnx.checker.check_model(onnx.load_from_string(machine._IDENTITY))
    assert provider_problem("CPUExecutionProvider") == ""
    assert "NoSuchExecutionProvider" in provider_problem("NoSuchExecutionProvider")
