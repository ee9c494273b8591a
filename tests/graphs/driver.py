"""Runs a saved graph of either dialect with plain numpy in and out: the smallest session there can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from hermes_deploy.graphs import GraphSpec, build_decoder, cache_names, save_model
from tests.graphs.reference import Reference


class GraphDriver:
    """`slots` rows of cache that are copied through the graph at every step."""

    def __init__(self, path: Path, spec: GraphSpec, slots: int) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._portable = spec.dialect == "portable"
        self._names = cache_names(spec.config.layers)
        shape = (slots, spec.config.kv_heads, spec.max_context, spec.config.head_dim)
        # what an earlier chat left must never be seen, so the cache does not begin with zeros
        junk = np.random.default_rng(9).normal(size=shape) * (50 if spec.cache == "int8" else 1)
        junk = junk.astype({"fp32": np.float32, "fp16": np.float16, "int8": np.int8}[spec.cache])
        self.caches = {past: junk.copy() for past, _ in self._names}

    def step(
        self,
        rows: slice,
        tokens: npt.NDArray[np.int64],
        starts: Sequence[int],
        wanted: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float32]:
        """tokens [B, S] at positions starts[b].. of `rows`; logits of `wanted` [B, R], or of all tokens."""
        batch, count = tokens.shape
        begin = np.asarray(starts, dtype=np.int64)
        every = np.tile(np.arange(count), (batch, 1))
        feeds = {past: self.caches[past][rows] for past, _ in self._names}
        feeds |= {"input_ids": tokens, "logits_positions": every if wanted is None else wanted}
        if self._portable:
            feeds |= {"position_ids": begin[:, None] + np.arange(count), "write_indices": begin}
        else:
            feeds |= {
                "seqlens_k": (begin + count - 1).astype(np.int32),
                "total_sequence_length": np.array(begin.max() + count, dtype=np.int32),
            }
        logits, *presents = self._session.run(["logits", *(present for _, present in self._names)], feeds)
        for (past, _), present in zip(self._names, presents, strict=True):
            self.caches[past][rows] = present
        answer: npt.NDArray[np.float32] = logits
        return answer


def drive(reference: Reference, folder: Path, spec: GraphSpec, slots: int = 1) -> GraphDriver:
    path = folder / f"{spec.dialect}-{spec.activation}-{spec.stored_embedding}.onnx"
    if not path.exists():
        save_model(build_decoder(spec, reference.tensors), path)
    return GraphDriver(path, spec, slots)
