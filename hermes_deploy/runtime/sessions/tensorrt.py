"""A `Session` over a TensorRT plan: `tensorrt` or `tensorrt_rtx`, one code path.

Takes the plan and what its sidecar says (`PlanFacts`). One execution context for each of the two profiles,
one stream; past and present of a cache are set to one address, which TensorRT asks for and which makes it
write in place. All but this is `RowSession`. The tests run this file against a stand-in for TensorRT that
computes with ONNX Runtime; with TensorRT itself it was never executed.
"""

from __future__ import annotations

import importlib
import math
import mmap
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import ArtifactError, ServeError
from hermes_deploy.runtime.sessions.cuda_memory import CudaMemory
from hermes_deploy.runtime.sessions.row_memory import ALIGNMENT, Memory, RowCaches
from hermes_deploy.runtime.sessions.row_session import RowSession, check_limits
from hermes_deploy.runtime.sessions.row_steps import EngineFacts, Inputs, Kind, Sizes
from hermes_deploy.targets import Flavour

_DTYPES: dict[str, type[np.generic]] = {"fp16": np.float16, "fp32": np.float32, "int64": np.int64, "int32": np.int32}
_KINDS: tuple[Kind, ...] = ("prefill", "decode")


@dataclass(frozen=True)
class TensorFacts:
    """`shape`: sizes, or names of dimensions that the profiles size. `dtype`: "fp16", "int64", ..."""

    dtype: str
    shape: tuple[int | str, ...]

    def most(self, ranges: Mapping[str, tuple[int, int]]) -> int:
        """Elements when every named dimension is as large as `ranges` let it be."""
        return math.prod(ranges[size][1] if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True)
class PlanFacts:
    """What engine.json says of engine.plan. `aliases`: output -> input at the same address. `profiles`: name ->
    least and most of each named dimension, in the order of the plan."""

    flavour: Flavour
    version: str
    compute_capabilities: tuple[tuple[int, int], ...]
    inputs: Mapping[str, TensorFacts]
    outputs: Mapping[str, TensorFacts]
    aliases: Mapping[str, str]
    profiles: Mapping[str, Mapping[str, tuple[int, int]]]

    @property
    def caches(self) -> dict[str, str]:
        """Past -> present."""
        return {past: present for present, past in self.aliases.items()}

    def engine_facts(self) -> EngineFacts:
        """Raises ArtifactError when these are not the inputs, caches and profiles of a decoder of ours."""
        needed = {"input_ids", "logits_positions", "position_ids", "write_indices"}
        pasts = {name for name in self.inputs if name.startswith("past_")}
        unknown = set(self.inputs) - needed - pasts
        if not needed <= set(self.inputs) or unknown or pasts != set(self.caches) or not pasts:
            raise ArtifactError(
                f"the engine's inputs are {', '.join(self.inputs)}, of which {len(self.aliases)} are updated in place; "
                f"expected are {', '.join(sorted(needed))} and caches. Build the artifact again."
            )
        if not set(_KINDS) <= set(self.profiles):
            raise ArtifactError(
                f"the engine's profiles are {', '.join(self.profiles)}; needed are {' and '.join(_KINDS)}. "
                "Build the artifact again."
            )
        shapes = {self.inputs[name] for name in pasts}
        if len(shapes) != 1:
            raise ArtifactError(f"the engine's caches differ in shape or dtype: {shapes}. Build the artifact again.")
        sizes = {kind: self._sizes(kind) for kind in _KINDS}
        return EngineFacts(
            "portable",
            vocab_size=int(self.outputs["logits"].shape[-1]),
            cache_length=int(next(iter(shapes)).shape[2]),
            prefill=sizes["prefill"],
            decode=sizes["decode"],
        )

    def _sizes(self, kind: Kind) -> Sizes:
        """Of the dimensions that `graphs` names batch, seq and rows."""
        ranges = self.profiles[kind]
        return Sizes(ranges["batch"], ranges["seq"], ranges["rows"])


class TensorRtRows:
    """`slots` rows in `memory`, whose device runs the plan; see `RowEngine`. `trt`: the package of the plan."""

    def __init__(self, trt: Any, plan: Path, said: PlanFacts, memory: Memory, slots: int) -> None:
        self.facts = said.engine_facts()
        self._memory, self._said = memory, said
        self._heard: deque[str] = deque(maxlen=8)
        self._logger = _make_logger(trt, self._heard)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._deserialize(trt, plan)
        self._check_aliases()
        past = said.inputs[next(iter(said.caches))]
        row_shape = (int(past.shape[1]), int(past.shape[2]), int(past.shape[3]))
        if past.dtype not in ("fp16", "fp32"):
            raise ArtifactError(f"the engine's caches are {past.dtype}; this version serves fp16 and fp32.")
        self.caches = RowCaches(memory, list(said.caches), slots, row_shape, _DTYPES[past.dtype])
        if slots > 1 and self.caches.row_bytes % ALIGNMENT:
            raise ArtifactError(
                f"a row of the cache has {self.caches.row_bytes} bytes, which TensorRT's addresses must be multiples "
                f"of {ALIGNMENT} for. Build with a --max-context that is a multiple of 8."
            )
        host = trt.TensorLocation.HOST
        self._small = {
            name: _Buffer(memory, tensor, said.profiles, self._engine.get_tensor_location(name) == host)
            for name, tensor in {**said.inputs, "logits": said.outputs["logits"]}.items()
            if name not in said.caches
        }
        self._contexts = {kind: self._make_context(index) for index, kind in enumerate(said.profiles) if kind in _KINDS}
        self._rows: dict[str, tuple[int, int]] = {}
        memory.synchronize()

    def run(self, kind: Kind, first: int, inputs: Inputs) -> npt.NDArray[np.float32]:
        self._memory.use()
        context = self._contexts[kind]
        batch, rows = inputs["logits_positions"].shape
        for name, array in inputs.items():
            self._small[name].write(array)
            self._must(context.set_input_shape(name, array.shape), f"the shape {array.shape} of {name}")
        if self._rows.get(kind) != (first, batch):
            for past, present in self._said.caches.items():
                shape, address = (batch, *self.caches.row_shape), self.caches.address(past, first)
                self._must(context.set_input_shape(past, shape), f"the shape {shape} of {past}")
                for name in (past, present):
                    self._must(context.set_tensor_address(name, address), f"the address of {name}")
            self._rows[kind] = (first, batch)
        self._must(context.execute_async_v3(self._memory.stream), f"a {kind} of {batch} rows")
        logits = self._small["logits"].read((batch, rows, self.facts.vocab_size))
        self._memory.synchronize()
        return logits.view(np.float32)

    def close(self) -> None:
        self._contexts.clear()
        # TensorRT wants them to go before what they were made from
        del self._engine, self._runtime
        self._memory.close()

    def _deserialize(self, trt: Any, plan: Path) -> Any:
        self._memory.use()
        with plan.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise ArtifactError(
                f"{trt.__name__} {trt.__version__} cannot open {plan} on this GPU: {self._words()}. "
                "Build the artifact for this GPU, with the TensorRT that is here."
            )
        return engine

    def _check_aliases(self) -> None:
        """The plan itself says which output must lie where which input does."""
        for past, present in self._said.caches.items():
            found = self._engine.get_aliased_input_tensor(present)
            if found != past:
                raise ArtifactError(
                    f"the plan writes {present} into {found or 'memory of its own'}, its sidecar says {past}. "
                    "Build the artifact again."
                )

    def _make_context(self, index: int) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise ServeError(f"TensorRT cannot make room to run the engine: {self._words()}. Serve with fewer slots.")
        self._must(context.set_optimization_profile_async(index, self._memory.stream), f"profile {index}")
        for name, buffer in self._small.items():
            self._must(context.set_tensor_address(name, buffer.address), f"the address of {name}")
        return context

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise ServeError(f"TensorRT refuses {what}: {self._words()}")

    def _words(self) -> str:
        """What TensorRT logged last; the first of those lines is the cause."""
        said = "; ".join(self._heard) or "it gave no reason"
        self._heard.clear()
        return said


class _Buffer:
    """One small input, or the logits: memory of the host, and of the device unless TensorRT reads it here."""

    def __init__(
        self, memory: Memory, tensor: TensorFacts, profiles: Mapping[str, Mapping[str, tuple[int, int]]], on_host: bool
    ) -> None:
        self._memory = memory
        self._dtype = np.dtype(_DTYPES[tensor.dtype])
        size = max(tensor.most(profiles[kind]) for kind in _KINDS) * self._dtype.itemsize
        self._host = memory.host(size)
        self._on_host = on_host
        self.address = self._host.ctypes.data if on_host else memory.allocate(size)

    def write(self, array: npt.NDArray[np.generic]) -> None:
        size = array.size * self._dtype.itemsize
        self._host[:size].view(self._dtype).reshape(array.shape)[...] = array
        if not self._on_host:
            self._memory.upload(self.address, self._host[:size])

    def read(self, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
        """Complete after the next `synchronize`."""
        size = int(np.prod(shape)) * self._dtype.itemsize
        if not self._on_host:
            self._memory.download(self._host[:size], self.address)
        return self._host[:size].view(self._dtype).reshape(shape)


def open_tensorrt(
    plan: Path,
    said: PlanFacts,
    *,
    slots: int,
    max_context: int | None = None,
    trt: Any = None,
    memory: Memory | None = None,
) -> RowSession:
    """`slots` rows of `max_context` tokens; the cache is as long as it was built, whatever the context.

    Runs on the first GPU of a compute capability that the plan was built for. `trt` and `memory` stand
    for TensorRT and the GPU where there is none. Raises ServeError where a package, a driver or such a
    GPU is missing and for limits beyond the build, ArtifactError for a plan that does not open.
    """
    context = check_limits(said.engine_facts(), slots, max_context)
    if trt is None:
        try:
            trt = importlib.import_module(said.flavour)
        except ImportError as error:
            raise ServeError(f"{said.flavour} cannot be imported ({error}). Run: hermes-deploy doctor") from error
    if trt.__version__ != said.version:
        raise ServeError(
            f"{plan} was built by {said.flavour} {said.version} and opens with that version only; found: "
            f"{trt.__version__}. Install that version, or build the artifact again with the one that is here."
        )
    if memory is None:
        memory = CudaMemory(said.compute_capabilities)
    return RowSession(TensorRtRows(trt, plan, said, memory, slots), slots=slots, max_context=context)


def _make_logger(trt: Any, heard: deque[str]) -> Any:
    """Keeps the last errors and warnings. A process has one logger, the first: a server builds no engine, so
    this is it."""
    severity = trt.ILogger.Severity

    class RecentLogger(trt.ILogger):  # type: ignore[misc] # trt is chosen at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING):
                heard.append(message.strip())

    return RecentLogger()
