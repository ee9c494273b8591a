"""A `Session` on ONNX Runtime's CUDA provider, over a saved `ort`-dialect graph of fp16 activations.

The caches are the GPU's memory, allocated once and bound by address as past and present; tokens and
logits cross the bus, nothing else. All but opening is `RowSession` over `OrtRows`, which the tests run
on the CPU provider. Never executed on a GPU yet.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from hermes_deploy.runtime.sessions.cuda_memory import CudaMemory
from hermes_deploy.runtime.sessions.ort_rows import load_graph, open_rows
from hermes_deploy.runtime.sessions.row_session import RowSession

PROVIDER = "CUDAExecutionProvider"


def open_ort_cuda(
    model: Path,
    *,
    slots: int,
    max_context: int | None = None,
    prefill_chunk: int = 512,
    cpu_nodes: bool = False,
) -> RowSession:
    """`slots` rows of `max_context` tokens, at most what the graph was built for (the default).

    Runs on the first GPU that CUDA shows. `cpu_nodes`: allow nodes that have no CUDA kernel to run on the
    CPU; not allowed, such a graph is refused. Raises ArtifactError for a file that is not such a graph,
    ServeError for limits beyond the build and where CUDA, cuDNN, a driver or a GPU is missing.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not cpu_nodes:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if PROVIDER in ort.get_available_providers():
        # CUDA and cuDNN that came as pip packages lie where no loader looks
        ort.preload_dlls()
    settings = {"device_id": "0"}
    run = load_graph(model, options, PROVIDER, settings)
    return open_rows(run, model, CudaMemory(), "ort", slots, max_context, prefill_chunk)
