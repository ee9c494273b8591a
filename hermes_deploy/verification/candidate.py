"""Runs a saved decoder graph over token sequences on the CPU, for its numbers.

Takes the very file that a target's engine is made from, whatever its dialect and precision, and
gives logits of every position, a few hundred positions at a time. Speed is second to being right:

    ort dialect        as it is served: ONNX Runtime's optimizer, fused 4-bit linears, int8 activations
    portable dialect   ORT_ENABLE_BASIC (the optimizer would replace Q/DQ by kernels with other
                       rounding) and no Q/DQ rewriting at all (without it FP8 fails to load)

A portable graph has a cache of max_context tokens whatever is asked; in memory, not in the file, it
is shortened to what the texts need. That touches the shapes of inputs and outputs and the row of
cache positions in the mask; no weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from hermes_deploy.errors import GateError
from hermes_deploy.runtime.ort_cpu import physical_cores

CHUNK = 256
"""Positions that one run computes; logits are [CHUNK, vocab]."""

_DTYPES = {"fp32": np.float32, "fp16": np.float16}
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
        self._cache_shape = (1, int(facts["kv_heads"]), longest, int(facts["head_dim"]))
        self._vocab_size = int(facts["vocab_size"])
        self._cache_dtype = _DTYPES[facts["activation"]]
        options = _options(self._portable, onnx_path.parent)
        try:
            what: str | bytes = str(onnx_path)
            if self._portable:
                _shorten(model, int(facts["max_context"]), longest)
                what = ir.to_proto(model).SerializeToString()
            self._run = ort.InferenceSession(what, options, providers=["CPUExecutionProvider"])
        except _LOAD_ERRORS as error:
            raise GateError(f"ONNX Runtime cannot load {onnx_path}: {error}") from error
        self._caches = [node.name for node in self._run.get_inputs() if node.name.startswith("past_")]

    def logits(self, sequence: Sequence[int]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """(first position, logits [n, vocab]) for all positions of one sequence, from an empty cache."""
        caches: dict[str, npt.NDArray[Any]] = {
            name: np.zeros(self._cache_shape, dtype=self._cache_dtype) for name in self._caches
        }
        sequence = sequence[: self._cache_shape[2]]
        for start in range(0, len(sequence), CHUNK):
            ids = np.asarray([sequence[start : start + CHUNK]], dtype=np.int64)
            count = ids.shape[1]
            inputs: dict[str, npt.NDArray[Any]] = {"input_ids": ids, "logits_positions": np.arange(count)[None]}
            if self._portable:
                inputs["position_ids"] = np.arange(start, start + count)[None]
                inputs["write_indices"] = np.asarray([start], dtype=np.int64)
            else:
                inputs["seqlens_k"] = np.asarray([start + count - 1], dtype=np.int32)
                inputs["total_sequence_length"] = np.asarray(start + count, dtype=np.int32)
            yield start, self._step(inputs, caches)

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
        logits = np.empty((*inputs["logits_positions"].shape, self._vocab_size), dtype=np.float32)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._run.run_with_iobinding(binding)
        rows: npt.NDArray[np.float32] = logits[0]
        return rows


def _options(portable: bool, weights: Path) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    options.log_severity_level = 3
    if portable:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
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
