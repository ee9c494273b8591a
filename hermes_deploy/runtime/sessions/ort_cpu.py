"""A `Session` on ONNX Runtime's CPU provider, over a saved `ort`-dialect graph.

The rows of the cache that a step names are bound as past and present of the graph, so it writes in
place and copies nothing; which rows they are makes no difference (`cache_memory`). Prefill runs on one
row, decode on all that are asked for at once. Where this machine can run the operators of `kernels`, their
graph is opened. Imports onnxruntime and numpy, nothing of the build.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile

from hermes_deploy import kernels
from hermes_deploy.errors import ArtifactError, ServeError
from hermes_deploy.runtime.sessions.cache_memory import CacheMemory, RowView, padded_context
from hermes_deploy.runtime.sessions.limits import Limits, served_context

_MAX_MAPPINGS = 16_384
"""Of 65,530 that Linux allows a process: one for each row of each cache in each view that is kept."""
_T = TypeVar("_T", bound=np.generic)
_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
}


def physical_cores() -> int:
    """Cores that this process may use: its affinity, two threads of a core counted once, within the
    container's CPU quota. More threads than that make every step slower."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.exists() else str(cpu))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, _, period = quota.read_text().strip().partition(" ")
        if limit.isdigit() and period.isdigit():
            return max(1, min(len(cores), int(limit) // int(period)))
    return len(cores)


class OrtCpuSession:
    """`slots` rows of `max_context` tokens, at most what the graph was built for (the default).

    `threads`: None = physical cores. `prefill_chunk`: tokens a prefill call takes at most; longer is
    a little faster for one chat and makes the others wait longer. Memory of the cache is taken as it
    is used: slots that stay empty cost nothing. A prefill may overlap with decodes of other rows.
    `own_kernels`: False to do without the operators of `kernels`; the attribute `without_kernels` says why they
    are not used, and is empty where they are.
    Raises ArtifactError for a file that is not such a graph, ServeError for limits beyond the build.
    """

    def __init__(
        self,
        model: Path,
        *,
        slots: int,
        max_context: int | None = None,
        threads: int | None = None,
        prefill_chunk: int = 256,
        own_kernels: bool = True,
    ) -> None:
        self._run, self.without_kernels = _load(model, threads, own_kernels)
        facts = self._run.get_modelmeta().custom_metadata_map
        if facts.get("dialect") != "ort":
            raise ArtifactError(
                f"{model} is not a graph for ONNX Runtime (its dialect is {facts.get('dialect')!r}, "
                "expected 'ort'). Build the artifact for the cpu target."
            )
        self.slots = slots
        self.max_context = served_context(max_context, int(facts["max_context"]))
        self.vocab_size = int(facts["vocab_size"])
        if slots < 1:
            raise ServeError(f"slots is {slots}; at least 1 is needed.")
        self.prefill_chunk = min(prefill_chunk, self.max_context)
        self.overlaps = True
        # ONNX Runtime's attention rounds otherwise for one token than for several, which int8 activations make up to
        # 0.5 in a logit: answers with drafts would be others than without
        whole = facts.get(kernels.FACT) == kernels.WHOLE
        self.draft_tokens = self.prefill_chunk - 1 if whole else 0
        self._limits = Limits(slots, self.max_context, self.vocab_size, self.prefill_chunk)
        self._caches = _Caches(self._run, int(facts["layers"]), slots, self.max_context)
        self.cache_token_bytes = self._caches.token_bytes
        self._steps: OrderedDict[tuple[int, ...], _Step] = OrderedDict()
        self._looking = threading.Lock()

    def prefill(self, slot: int, tokens: npt.NDArray[np.int64], start: int, logits: int = 1) -> npt.NDArray[np.float32]:
        """See `Session.prefill`. Raises RequestError where the tokens do not fit."""
        self._limits.check_prefill(slot, tokens, start, logits)
        count = len(tokens)
        step = self._step((slot,))
        last = np.array([start + count - 1], dtype=np.int32)
        # the head cannot run on no row at all; one row is a thousandth of a chunk's work
        wanted = np.arange(count - max(logits, 1), count, dtype=np.int64)[np.newaxis]
        found: npt.NDArray[np.float32] = step.run(tokens[np.newaxis], last, wanted)[0]
        return found[max(logits, 1) - logits :]

    def decode(
        self, slots: Sequence[int], tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """See `Session.decode`: one run, whichever slots are named."""
        self._limits.check_decode(slots, tokens, positions)
        step = self._step(tuple(slots))
        wanted = np.zeros((len(slots), 1), dtype=np.int64)
        return step.run(tokens[:, np.newaxis], positions.astype(np.int32), wanted)[:, 0]

    def copy(self, source: int, target: int, start: int, count: int) -> None:
        """See `Session.copy`."""
        self._limits.check_copy(source, target, start, count)
        for rows in self._caches.arrays.values():
            rows[target, :, start : start + count] = rows[source, :, start : start + count]

    def close(self) -> None:
        """Frees the weights and the cache. The session cannot be used afterwards."""
        self._steps.clear()
        self._caches.close()
        del self._run

    def _step(self, slots: tuple[int, ...]) -> _Step:
        with self._looking:
            step = self._steps.get(slots)
            if step is None:
                step = self._steps[slots] = _Step(self._run, self._caches, slots)
                # one that is running is still held by its call
                while sum(kept.mappings for kept in self._steps.values()) > _MAX_MAPPINGS and len(self._steps) > 1:
                    self._steps.popitem(last=False)
            self._steps.move_to_end(slots)
            return step


class _Caches:
    """The caches of the graph by input name, `[slots, kv_heads, context, ...]`, in one memory."""

    def __init__(self, run: ort.InferenceSession, layers: int, slots: int, context: int) -> None:
        nodes = [node for node in run.get_inputs() if node.name.startswith("past_")]
        if len(nodes) != 2 * layers:
            raise ArtifactError(f"the graph has {len(nodes)} caches, expected {2 * layers}. Build the artifact again.")
        self.names = [node.name for node in nodes]
        self.dtype: type[np.generic] = _DTYPES[nodes[0].type]
        # [batch, kv_heads, context, head_dim]; context and batch are names
        _, heads, _, width = nodes[0].shape
        one = int(heads) * int(width) * np.dtype(self.dtype).itemsize
        self.token_bytes = one * len(nodes)
        self.row_shape = (int(heads), padded_context(context, one), int(width))
        self.memory = CacheMemory(len(nodes), slots, int(np.prod(self.row_shape)) * np.dtype(self.dtype).itemsize)
        self.arrays = {
            name: self.memory.array(cache, self.dtype, self.row_shape) for cache, name in enumerate(self.names)
        }

    def close(self) -> None:
        self.arrays.clear()
        self.memory.close()


class _Step:
    """The graph bound to the rows `slots`, in that order. Inputs keep their memory while their shape stays."""

    def __init__(self, run: ort.InferenceSession, caches: _Caches, slots: tuple[int, ...]) -> None:
        self._run = run
        self._binding = run.io_binding()
        neighbours = slots == tuple(range(slots[0], slots[0] + len(slots)))
        self._view = None if neighbours else RowView(caches.memory, slots)
        self.mappings = 0 if self._view is None else len(slots) * len(caches.names)
        addresses = caches.memory.neighbours(slots[0]) if self._view is None else self._view.addresses
        shape = (len(slots), *caches.row_shape)
        for name, address in zip(caches.names, addresses, strict=True):
            where = ("cpu", 0, caches.dtype, shape, address)
            self._binding.bind_input(name, *where)
            self._binding.bind_output(name.replace("past", "present", 1), *where)
        self._total = self._bind("total_sequence_length", np.zeros((), dtype=np.int32))
        self._last = self._bind("seqlens_k", np.zeros(len(slots), dtype=np.int32))
        self._tokens = np.zeros((0, 0), dtype=np.int64)
        self._wanted = np.zeros((0, 0), dtype=np.int64)
        self._room = np.zeros(0, dtype=np.float32)
        self._logits = self._room.reshape(0, 0, 0)
        self._vocab = int(run.get_modelmeta().custom_metadata_map["vocab_size"])

    def run(
        self, tokens: npt.NDArray[np.int64], last: npt.NDArray[np.int32], wanted: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """`tokens` [rows, n], the last at position `last` [rows]; logits [rows, r, vocab] of `wanted` [rows, r]."""
        if tokens.shape != self._tokens.shape:
            self._tokens = self._bind("input_ids", np.empty(tokens.shape, dtype=np.int64))
        if wanted.shape != self._wanted.shape:
            self._wanted = self._bind("logits_positions", np.empty(wanted.shape, dtype=np.int64))
            size = wanted.size * self._vocab
            if size > len(self._room):  # kept: fresh memory for every other step would cost as much as a token
                self._room = np.empty(size, dtype=np.float32)
            self._logits = self._room[:size].reshape(*wanted.shape, self._vocab)
            self._binding.bind_output("logits", "cpu", 0, np.float32, self._logits.shape, self._logits.ctypes.data)
        self._tokens[:], self._last[:], self._wanted[:] = tokens, last, wanted
        self._total[...] = last.max() + 1
        self._run.run_with_iobinding(self._binding)
        return self._logits

    def _bind(self, name: str, array: npt.NDArray[_T]) -> npt.NDArray[_T]:
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return array


def _load(model: Path, threads: int | None, own_kernels: bool) -> tuple[ort.InferenceSession, str]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    # int8 activations inside the fused 4-bit linears: the fastest kernels
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    try:
        return kernels.open_graph(model, options, own_kernels=own_kernels)
    except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
        raise ArtifactError(f"ONNX Runtime cannot load {model}: {error}. Build the artifact again.") from error
