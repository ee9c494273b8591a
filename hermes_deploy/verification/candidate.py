"""Runs a saved decoder graph over token sequences on the CPU, for its numbers.

Takes the very file that a target's engine is made from, whatever its dialect and precision, and
gives logits of every position, a few hundred positions at a time. Speed is second to being right:

    ort dialect        as it is served on this machine: int8 activations, by the operators of `kernels` where it
                       can run them (`without_kernels` says why not), else ONNX Runtime's
    portable dialect   ORT_ENABLE_BASIC (the optimizer would replace Q/DQ by kernels with other
                       rounding) and no Q/DQ rewriting at all (without it FP8 fails to load);
                       of an NVFP4 graph its twin (quantization.nvfp4_twin), over the same file

A portable graph has a cache of max_context tokens whatever is asked; in memory, not in the file, it
is shortened to what the texts need. That touches the shapes of inputs and outputs and the row of
cache positions in the mask; no weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from hermes_deploy import kernels
from hermes_deploy.errors import GateError
from hermes_deploy.quantization.nvfp4_twin import nvfp4_twin
from hermes_deploy.runtime.sessions.ort_cpu import physical_cores
from hermes_deploy.verification.late_weights import wait_for_inputs

CHUNK = 256
"""Positions of one sequence that one run computes."""

_FEW, _TAIL = 4, 16
"""A graph with a cache in 8 bits has a way of its own for few tokens a step (`graphs.grouped_query`), which
whole texts would never take: the last _TAIL positions of each are read _FEW at a time."""

_LOGITS_BYTES = 192 << 20
"""Most bytes of logits of a run that takes several sequences."""

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
_LOAD_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.InvalidArgument,
    ort_errors.RuntimeException,
)
_CACHE_POSITIONS = "mask.cache_positions"


class Candidate:
    """A loaded graph. `longest`: tokens of the longest sequence that will be asked for; what the
    graph does not hold is cut off. Raises GateError when it cannot be loaded."""

    def __init__(self, onnx_path: Path, longest: int) -> None:
        model = ir.load(onnx_path)
        facts = dict(model.metadata_props)
        if "dialect" not in facts:
            raise GateError(f"{onnx_path} was not made by hermes_deploy.graphs; the gate cannot run it")
        longest = min(longest, int(facts["max_context"]))
        self._portable = facts["dialect"] == "portable"
        self._longest = longest
        self._vocab_size = int(facts["vocab_size"])
        self._logits = np.empty(0, dtype=np.float32)  # one buffer: fresh pages for each run cost time and memory
        options = _options(self._portable, onnx_path.parent)
        try:
            if self._portable:
                nvfp4_twin(model)
                wait_for_inputs(model)
                _shorten(model, int(facts["max_context"]), longest)
                what = ir.to_proto(model).SerializeToString()
                self._run = ort.InferenceSession(
                    what,
                    options,
                    providers=["CPUExecutionProvider"],
                    # folding would keep every matrix dequantized, in float32, all at once
                    disabled_optimizers=["ConstantFolding"],
                )
                self.without_kernels = "the graph is of the portable dialect"
            else:
                self._run, self.without_kernels = kernels.open_graph(onnx_path, options)
        except _LOAD_ERRORS as error:
            raise GateError(f"ONNX Runtime cannot load {onnx_path}: {error}") from error
        # as the graph says, not as its facts do: a cache in 8 bits is compared in 8 bits
        self._caches = {
            node.name: ((node.shape[1], longest, node.shape[3]), _DTYPES[node.type])
            for node in self._run.get_inputs()
            if node.name.startswith("past_")
        }

    @property
    def longest(self) -> int:
        """Tokens of a sequence that are kept."""
        return self._longest

    def answers(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, npt.NDArray[np.float32]]]:
        """(which sequence, first position, logits [n, vocab]) until every position has been given.

        Sequences are independent, each from an empty cache; of one sequence the pieces are in order.
        The logits are overwritten by the next ones.
        """
        together = 1
        if self._portable:  # each run dequantizes all weights: the fewer the better
            together = max(1, _LOGITS_BYTES // (min(CHUNK, self._longest) * self._vocab_size * 4))
        for first in range(0, len(sequences), together):
            cut = [sequence[: self._longest] for sequence in sequences[first : first + together]]
            for row, start, logits in self._batch(cut):
                yield first + row, start, logits

    def _batch(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, npt.NDArray[np.float32]]]:
        rows, end = len(sequences), max(map(len, sequences))
        caches: dict[str, npt.NDArray[Any]] = {
            name: np.zeros((rows, *shape), dtype=dtype) for name, (shape, dtype) in self._caches.items()
        }
        for start, stop in self._pieces(end):
            ids = np.zeros((rows, stop - start), dtype=np.int64)  # padding is written behind a row's own tokens
            for row, sequence in enumerate(sequences):
                piece = sequence[start:stop]
                ids[row, : len(piece)] = piece
            every = np.broadcast_to(np.arange(stop - start), ids.shape).copy()
            inputs: dict[str, npt.NDArray[Any]] = {"input_ids": ids, "logits_positions": every}
            if self._portable:
                inputs["position_ids"] = every + start
                inputs["write_indices"] = np.full(rows, start, dtype=np.int64)
            else:
                inputs["seqlens_k"] = np.full(rows, stop - 1, dtype=np.int32)
                inputs["total_sequence_length"] = np.asarray(stop, dtype=np.int32)
            logits = self._step(inputs, caches)
            for row, sequence in enumerate(sequences):
                if len(sequence) > start:
                    yield row, start, logits[row, : len(sequence) - start]

    def _pieces(self, end: int) -> Iterator[tuple[int, int]]:
        """(first position, position after the last) of each run over texts of up to `end` tokens."""
        coded = any(dtype is np.int8 for _, dtype in self._caches.values())
        tail = max(0, end - _TAIL) if coded else end
        yield from ((start, min(start + CHUNK, tail)) for start in range(0, tail, CHUNK))
        yield from ((start, min(start + _FEW, end)) for start in range(tail, end, _FEW))

    def _step(
        self, inputs: dict[str, npt.NDArray[Any]], caches: dict[str, npt.NDArray[Any]]
    ) -> npt.NDArray[np.float32]:
        binding = self._run.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name, array in caches.items():
            # past and present are one buffer, as when serving
            where = ("cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            binding.bind_input(name, *where)
            binding.bind_output(name.replace("past", "present", 1), *where)
        shape = (*inputs["logits_positions"].shape, self._vocab_size)
        if self._logits.size < math.prod(shape):
            self._logits = np.empty(math.prod(shape), dtype=np.float32)
        logits = self._logits[: math.prod(shape)].reshape(shape)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._run.run_with_iobinding(binding)
        return logits


def _options(portable: bool, weights: Path) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    options.log_severity_level = 3
    if portable:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        # a matrix is dequantized right before it is used, and its memory given back
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    else:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    return options


def _shorten(model: ir.Model, built: int, longest: int) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name is not None and value.name.startswith(("past_", "present_")):
            assert value.shape is not None
            value.shape = ir.Shape(
                [longest if size == built and i == 2 else size for i, size in enumerate(value.shape)]
            )
    positions = model.graph.initializers[_CACHE_POSITIONS]
    assert positions.const_value is not None
    kept = positions.const_value.numpy()[..., :longest].copy()
    positions.const_value = ir.tensor(kept, name=_CACHE_POSITIONS)
    positions.shape = ir.Shape(kept.shape)
