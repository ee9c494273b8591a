"""A `Session` on ONNX Runtime's CPU provider, over a saved `ort`-dialect graph.

One cache array a layer and kind, `[slots, kv_heads, max_context, head_dim]`, is bound as past and
present of the graph, so a step writes in place and copies nothing. Rows are views of it: prefill
runs on one row, decode on a range of rows. Imports onnxruntime and numpy, nothing of the build.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile

from hermes_deploy.errors import ArtifactError, RequestError, ServeError

_WASTED_ROWS = 3
"""Rows that nobody asked for, in one decode run, before two runs are cheaper. Measured: starting a
run (reading all weights) costs as much as three to four more rows."""

_MAX_BINDINGS = 256
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class RowRange:
    """Rows first..first+count of the cache, run together; `wanted` are those that were asked for."""

    first: int
    count: int
    wanted: tuple[int, ...]

    @property
    def unwanted(self) -> tuple[int, ...]:
        asked = set(self.wanted)
        return tuple(row for row in range(self.first, self.first + self.count) if row not in asked)


def row_ranges(slots: Sequence[int]) -> list[RowRange]:
    """The fewest ranges that cover `slots` with at most `_WASTED_ROWS` between two neighbours."""
    groups: list[list[int]] = []
    for slot in sorted(slots):
        if groups and slot - groups[-1][-1] - 1 <= _WASTED_ROWS:
            groups[-1].append(slot)
        else:
            groups.append([slot])
    return [RowRange(group[0], group[-1] - group[0] + 1, tuple(group)) for group in groups]


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
    is used: slots that stay empty cost nothing. Not thread-safe: one caller at a time.
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
    ) -> None:
        self._run = _load(model, threads)
        facts = self._run.get_modelmeta().custom_metadata_map
        if facts.get("dialect") != "ort":
            raise ArtifactError(
                f"{model} is not a graph for ONNX Runtime (its dialect is {facts.get('dialect')!r}, "
                "expected 'ort'). Build the artifact for the cpu target."
            )
        built = int(facts["max_context"])
        self.slots = slots
        self.max_context = built if max_context is None else max_context
        self.vocab_size = int(facts["vocab_size"])
        if not 2 <= self.max_context <= built:
            raise ServeError(
                f"max_context {self.max_context} is not possible: the artifact was built for 2 to {built} "
                "tokens. Serve with less, or build again with a larger --max-context."
            )
        if slots < 1:
            raise ServeError(f"slots is {slots}; at least 1 is needed.")
        self.prefill_chunk = min(prefill_chunk, self.max_context)
        self._caches = _allocate(self._run, int(facts["layers"]), self._cache_shape(facts))
        self._bindings: dict[tuple[int, int], _Step] = {}

    def prefill(self, slot: int, tokens: npt.NDArray[np.int64], start: int) -> npt.NDArray[np.float32]:
        """See `Session.prefill`. Raises RequestError where the tokens do not fit."""
        count = len(tokens)
        if not 1 <= count <= self.prefill_chunk:
            raise RequestError(f"prefill takes 1 to {self.prefill_chunk} tokens at a time, got {count}.")
        self._check([slot], tokens, np.asarray([start, start + count - 1]))
        step = _Step(self._run, self._caches, slot, 1, count)
        step.tokens[0] = tokens
        step.last[0] = start + count - 1
        step.wanted[0, 0] = count - 1
        logits: npt.NDArray[np.float32] = step.run(self.vocab_size)[0]
        return logits

    def decode(
        self, slots: Sequence[int], tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """See `Session.decode`. Fastest when `slots` are neighbours: rows between them are computed too."""
        if len(set(slots)) != len(slots) or not len(slots) == len(tokens) == len(positions):
            raise RequestError(f"decode needs one token and one position for each of different slots, got {slots}.")
        self._check(slots, tokens, positions)
        place = {slot: i for i, slot in enumerate(slots)}
        logits = np.empty((len(slots), self.vocab_size), dtype=np.float32)
        for rows in row_ranges(slots):
            asked = [place[row] for row in rows.wanted]
            at = np.asarray(rows.wanted) - rows.first
            step = self._step(rows.first, rows.count)
            step.tokens[:] = 0
            step.last[:] = 0
            step.tokens[at, 0] = tokens[asked]
            step.last[at] = positions[asked]
            # A row that was not asked for runs as an empty chat, which overwrites its position 0.
            victims = [cache[row, :, 0] for row in rows.unwanted for cache in self._caches.values()]
            kept = [victim.copy() for victim in victims]
            answer = step.run(self.vocab_size)
            for victim, values in zip(victims, kept, strict=True):
                victim[:] = values
            if len(asked) == rows.count == len(slots) and asked == list(range(len(slots))):
                return answer
            logits[asked] = answer[at]
        return logits

    def close(self) -> None:
        """Frees the weights and the cache. The session cannot be used afterwards."""
        self._bindings.clear()
        self._caches.clear()
        del self._run

    def _step(self, first: int, count: int) -> _Step:
        if (first, count) not in self._bindings:
            if len(self._bindings) >= _MAX_BINDINGS:
                self._bindings.clear()
            self._bindings[first, count] = _Step(self._run, self._caches, first, count, 1)
        return self._bindings[first, count]

    def _cache_shape(self, facts: dict[str, str]) -> tuple[int, int, int, int]:
        return self.slots, int(facts["kv_heads"]), self.max_context, int(facts["head_dim"])

    def _check(self, slots: Sequence[int], tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> None:
        if not slots or min(slots) < 0 or max(slots) >= self.slots:
            raise RequestError(f"slots are 0 to {self.slots - 1}, got {list(slots)}.")
        if positions.min() < 0 or positions.max() >= self.max_context:
            raise RequestError(
                f"position {positions.max()} does not fit: this server holds {self.max_context} tokens a chat.",
                code="OUT_OF_RANGE",
            )
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise RequestError(f"token ids are 0 to {self.vocab_size - 1}, got {tokens.min()} to {tokens.max()}.")


class _Step:
    """One binding of the graph: `count` rows from `first`, `seq` tokens each, inputs written in place."""

    def __init__(
        self, run: ort.InferenceSession, caches: dict[str, npt.NDArray[np.generic]], first: int, count: int, seq: int
    ) -> None:
        self._run = run
        self._binding = run.io_binding()
        self._total = np.zeros((), dtype=np.int32)
        self.tokens = np.zeros((count, seq), dtype=np.int64)
        self.last = np.zeros(count, dtype=np.int32)
        """Position of each row's last token."""
        self.wanted = np.zeros((count, 1), dtype=np.int64)
        for name, array in (
            ("input_ids", self.tokens),
            ("seqlens_k", self.last),
            ("total_sequence_length", self._total),
            ("logits_positions", self.wanted),
        ):
            self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, cache in caches.items():
            rows = cache[first : first + count]
            where = ("cpu", 0, rows.dtype.type, rows.shape, rows.ctypes.data)
            self._binding.bind_input(name, *where)
            self._binding.bind_output(name.replace("past", "present", 1), *where)

    def run(self, vocab_size: int) -> npt.NDArray[np.float32]:
        """Logits `[count, vocab]` of the wanted token of each row, in memory of their own."""
        self._total[...] = self.last.max() + 1
        logits = np.empty((len(self.last), 1, vocab_size), dtype=np.float32)
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._run.run_with_iobinding(self._binding)
        return logits[:, 0]


def _load(model: Path, threads: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or physical_cores()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    # int8 activations inside the fused 4-bit linears: the fastest kernels
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    try:
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
        raise ArtifactError(f"ONNX Runtime cannot load {model}: {error}. Build the artifact again.") from error


def _allocate(
    run: ort.InferenceSession, layers: int, shape: tuple[int, int, int, int]
) -> dict[str, npt.NDArray[np.generic]]:
    """Caches by input name, zeroed: the system hands out such pages only when they are written."""
    types = {node.name: _DTYPES[node.type] for node in run.get_inputs() if node.name.startswith("past_")}
    if len(types) != 2 * layers:
        raise ArtifactError(f"the graph has {len(types)} caches, expected {2 * layers}. Build the artifact again.")
    return {name: np.zeros(shape, dtype=dtype) for name, dtype in types.items()}
