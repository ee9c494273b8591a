"""Makes the graph and the plan that a session of the driver runs, and opens it: on the GPU, or dry on the CPU.

python engines.py GRAPH FOLDER RECIPE CHUNK SLOTS     a plan by ComputeCapability.CURRENT, for a GPU that no
                                                      target of tensorrt_rtx names
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.engines import build_engine, read_sidecar, serving_profiles, write_sidecar
from hermes_deploy.engines.request import BuildRequest
from hermes_deploy.engines.sidecar import PLAN, ProfileEntry, SizeRange
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.machine import buildable, gpus
from hermes_deploy.quantization import Preparation, quantize
from hermes_deploy.recipes import load_recipe
from hermes_deploy.runtime.session import Session
from hermes_deploy.runtime.sessions.ort_rows import open_rows_on_cpu
from hermes_deploy.runtime.sessions.tensorrt import open_tensorrt
from hermes_deploy.serving.sessions import plan_facts
from hermes_deploy.targets import TARGETS, Target

Kind = Literal["cuda", "tensorrt"]
KINDS: tuple[Kind, ...] = ("cuda", "tensorrt")
CHUNK, SLOTS = 512, 8


def record(kind: Kind) -> Target:
    """The target whose graph is made: this GPU's, or one like it where no target has its compute capability."""
    if kind == "cuda":
        return TARGETS["cuda"]
    here = [gpu.compute_capability for gpu in gpus()]
    return next((t for t in TARGETS.values() if t.compute_capability in here), TARGETS["sm89"])


def make_graph(
    kind: Kind,
    config: DecoderConfig,
    tensors: Mapping[str, LazyTensor],
    folder: Path,
    context: int,
    *,
    recipe: str,
    preparation: Preparation | None = None,
    dry: bool,
) -> None:
    """model.onnx in `folder`/`kind`. Dry, it is neither quantized nor fp16: the CPU has no kernels for that."""
    target = record(kind)
    chosen = load_recipe(recipe)
    spec = GraphSpec(config, target.dialect, "fp32" if dry else target.activation, context)
    model = build_decoder(spec, tensors)
    if not dry:
        quantize(model, chosen, target, preparation if chosen.calibration_chats else None)
    into = folder / kind
    into.mkdir(parents=True, exist_ok=True)
    save_model(model, into / "model.onnx")


def make_plan(folder: Path, recipe: str, chunk: int, slots: int) -> dict[str, Any]:
    """engine.plan and its sidecar beside the graph of `folder`/tensorrt; how it was come by."""
    began = time.perf_counter()
    target, graph = record("tensorrt"), folder / "tensorrt" / "model.onnx"
    trouble = buildable(target)
    if not trouble:
        profiles = serving_profiles(chunk, slots)
        build_engine(graph, [target], graph.parent, recipe=load_recipe(recipe), profiles=profiles)
        return {"plan": target.name, "seconds": time.perf_counter() - began}
    command = [sys.executable, __file__, str(graph), str(graph.parent), recipe, str(chunk), str(slots)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-15:])
        raise RuntimeError(f"{trouble}. ComputeCapability.CURRENT was tried instead: {last}")
    return {"plan": "current", "because": trouble, "seconds": time.perf_counter() - began}


def open_engine(kind: Kind, folder: Path, *, slots: int, chunk: int, dry: bool) -> Session:
    graph = folder / kind / "model.onnx"
    if dry:
        dialect = record(kind).dialect
        return open_rows_on_cpu(graph, dialect=dialect, slots=slots, prefill_chunk=chunk)
    if kind == "cuda":
        from hermes_deploy.runtime.sessions.ort_cuda import open_ort_cuda

        return open_ort_cuda(graph, slots=slots, prefill_chunk=chunk)
    said = plan_facts(read_sidecar(graph.parent))
    return open_tensorrt(graph.parent / PLAN, said, slots=slots)


def plan_by_current(graph: Path, folder: Path, recipe: str, chunk: int, slots: int) -> None:
    from hermes_deploy.engines import compile as builder

    def current(trt: Any, config: Any, _request: BuildRequest) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)

    builder._set_targets = current
    target, chosen = record("tensorrt"), load_recipe(recipe)
    request = BuildRequest(
        parent=os.getpid(),
        onnx=str(graph),
        flavour="tensorrt_rtx",
        targets=[target.name],
        precision=chosen.linear,
        head_precision=chosen.head_on(target),
        kept=[],
        profiles=[
            ProfileEntry(
                name=profile.name,
                dimensions={name: SizeRange(min=r.min, opt=r.opt, max=r.max) for name, r in profile.dimensions.items()},
            )
            for profile in serving_profiles(chunk, slots)
        ],
    )
    with (folder / PLAN).open("wb") as plan:
        sidecar = builder.compile_engine(request, plan, lambda *_: None)
    here = [".".join(map(str, gpu.compute_capability)) for gpu in gpus()]
    write_sidecar(folder, sidecar.model_copy(update={"compute_capabilities": here or sidecar.compute_capabilities}))
    print(json.dumps(sidecar.layers.model_dump()))


if __name__ == "__main__":
    graph_path, out, name, *sizes = sys.argv[1:]
    plan_by_current(Path(graph_path), Path(out), name, *map(int, sizes))
