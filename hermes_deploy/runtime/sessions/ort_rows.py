"""A `RowEngine` on ONNX Runtime: a saved graph of either dialect over rows in a device's memory.

Past and present of every cache are bound to the address of the first row, so the graph writes in place.
The same bindings run on the CPU provider over `HostMemory` and on the CUDA provider over `CudaMemory`:
the tests run the first, and only the device differs in the second.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import (
    EPFail,
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoSuchFile,
    NotImplemented,
    RuntimeException,
)

from hermes_deploy.errors import ArtifactError, ServeError
from hermes_deploy.runtime.sessions.row_memory import HostMemory, Memory, RowCaches
from hermes_deploy.runtime.sessions.row_session import RowSession, check_limits
from hermes_deploy.runtime.sessions.row_steps import EngineFacts, Inputs, Kind, Sizes
from hermes_deploy.targets import Dialect

_MAX_BINDINGS = 256
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OrtRows:
    """`slots` rows of `length` tokens in `memory`; see `RowEngine`."""

    def __init__(self, run: ort.InferenceSession, facts: EngineFacts, memory: Memory, slots: int, length: int) -> None:
        self.facts = facts
        self._run, self._memory = run, memory
        nodes = [node for node in run.get_inputs() if node.name.startswith("past_")]
        shape = (int(nodes[0].shape[1]), length, int(nodes[0].shape[3]))
        names = [node.name for node in nodes]
        if nodes[0].type not in _DTYPES:
            raise ArtifactError(
                f"the graph's caches are {nodes[0].type}; rows on this device are {' or '.join(_DTYPES)}. "
                "Build with kv: activation."
            )
        self.caches = RowCaches(memory, names, slots, shape, _DTYPES[nodes[0].type])
        self._bindings: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._logits = memory.host(0)
        memory.synchronize()

    def run(self, kind: Kind, first: int, inputs: Inputs) -> npt.NDArray[np.float32]:
        del kind  # one graph for both
        # rows may have been moved on the memory's stream; ONNX Runtime has one of its own
        self._memory.synchronize()
        batch, rows = inputs["logits_positions"].shape
        binding = self._binding(first, batch)
        for name, array in inputs.items():
            # binding an input of the CPU to a node of the GPU copies it there and then: so at every run
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        shape = (batch, rows, self.facts.vocab_size)
        size = int(np.prod(shape)) * 4
        if len(self._logits) < size:
            self._logits = self._memory.host(size)
        logits = self._logits[:size].view(np.float32).reshape(shape)
        binding.bind_output("logits", "cpu", 0, np.float32, shape, logits.ctypes.data)
        binding.synchronize_inputs()
        self._run.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return logits

    def close(self) -> None:
        self._bindings.clear()
        del self._run
        self._memory.close()

    def _binding(self, first: int, batch: int) -> Any:
        key = (first, batch)
        if key not in self._bindings:
            binding = self._bindings[key] = self._run.io_binding()
            shape = (batch, *self.caches.row_shape)
            for name in self.caches.names:
                where = (
                    self._memory.device,
                    self._memory.index,
                    self.caches.dtype.type,
                    shape,
                    self.caches.address(name, first),
                )
                binding.bind_input(name, *where)
                binding.bind_output(name.replace("past", "present", 1), *where)
            if len(self._bindings) > _MAX_BINDINGS:
                self._bindings.popitem(last=False)
        self._bindings.move_to_end(key)
        return self._bindings[key]


def load_graph(model: Path, options: ort.SessionOptions, provider: str, settings: dict[str, str]) -> Any:
    """The graph on that provider and no other. Raises ArtifactError for a file that is no graph, ServeError
    where ONNX Runtime would run it elsewhere than was asked for."""
    if provider not in ort.get_available_providers():
        found = ", ".join(ort.get_available_providers())
        raise ServeError(
            f"this ONNX Runtime has no {provider}; it has: {found}. "
            "Run: pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'hermes-deploy[cuda]'"
        )
    try:
        run = ort.InferenceSession(str(model), options, providers=[(provider, settings)])
    except (InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
        raise ArtifactError(f"ONNX Runtime cannot load {model}: {error}. Build the artifact again.") from error
    except (EPFail, Fail, InvalidArgument, NotImplemented, RuntimeException, RuntimeError) as error:
        raise ServeError(f"ONNX Runtime cannot open {model} on {provider}: {error}") from error
    if run.get_providers()[0] != provider:
        raise ServeError(
            f"ONNX Runtime cannot use {provider} here and would run on {run.get_providers()[0]} instead: "
            "a library of CUDA or cuDNN is missing. Run: hermes-deploy doctor"
        )
    return run


def read_facts(run: Any, model: Path, dialect: Dialect, slots: int, prefill_chunk: int) -> EngineFacts:
    """What the graph's metadata says. Raises ArtifactError for a graph of another dialect."""
    said = run.get_modelmeta().custom_metadata_map
    if said.get("dialect") != dialect:
        raise ArtifactError(
            f"{model} has the dialect {said.get('dialect')!r} (there are: {', '.join(get_args(Dialect))}), "
            f"expected {dialect!r}. Build the artifact for this target."
        )
    layers = int(said["layers"])
    caches = sum(node.name.startswith("past_") for node in run.get_inputs())
    if caches != 2 * layers:
        raise ArtifactError(f"the graph has {caches} caches, expected {2 * layers}. Build the artifact again.")
    one = (1, 1)
    chunk = (1, min(prefill_chunk, int(said["max_context"])))
    return EngineFacts(
        dialect=dialect,
        vocab_size=int(said["vocab_size"]),
        cache_length=int(said["max_context"]),
        prefill=Sizes(one, chunk, chunk),
        decode=Sizes((1, slots), one, one),
    )


def open_rows_on_cpu(
    model: Path,
    *,
    dialect: Dialect,
    slots: int,
    max_context: int | None = None,
    threads: int = 1,
    prefill_chunk: int = 256,
) -> RowSession:
    """The very session of a GPU over this machine's memory and the CPU provider: for tests and dry runs.

    To serve on a CPU, `ort_cpu.OrtCpuSession` is faster.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    run = load_graph(model, options, "CPUExecutionProvider", {})
    return open_rows(run, model, HostMemory(), dialect, slots, max_context, prefill_chunk)


def open_rows(
    run: Any,
    model: Path,
    memory: Memory,
    dialect: str,
    slots: int,
    max_context: int | None,
    prefill_chunk: int,
) -> RowSession:
    facts = read_facts(run, model, cast(Dialect, dialect), slots, prefill_chunk)
    context = check_limits(facts, slots, max_context)
    # the ort dialect takes a shorter cache than was built; the portable one has its length in the mask
    length = context if dialect == "ort" else facts.cache_length
    return RowSession(OrtRows(run, facts, memory, slots, length), slots=slots, max_context=context)
