"""openvino-genai: its continuous batching pipeline over int4 weights. `openvino_worker.py MODEL THREADS`

Its logits are not to be had from the pipeline: they are those of the same exported model in the same runtime with
the same properties, without paged attention.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from serving import Arrived, serve


class OpenVino:
    keeps = True

    def __init__(self, model: str, threads: int) -> None:
        self._folder, self._threads = model, threads

    def load(self) -> dict[str, str]:
        import openvino
        import openvino_genai

        self._openvino, self._library = openvino, openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 1  # GB
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = 2048  # a whole prompt at once: its fastest reading
        self._properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": self._threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(self._folder, scheduler, "CPU", self._properties)
        self._asked = 0
        return {"version": f"openvino-genai {openvino_genai.__version__}"}

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, arrived: Arrived) -> None:
        config = self._library.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        handles = []
        for prompt in prompts:
            ids = self._openvino.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self._pipeline.add_request(self._asked, ids, config))
            self._asked += 1
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for which, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        for token in output.generated_ids:
                            arrived(which, token)

    def logits(self, sequence: Sequence[int]) -> npt.NDArray[np.float32]:
        core = self._openvino.Core()
        if not hasattr(self, "_infer"):
            compiled = core.compile_model(f"{self._folder}/openvino_model.xml", "CPU", self._properties)
            self._infer = compiled.create_infer_request()
        self._infer.reset_state()
        count = len(sequence)
        inputs = {
            "input_ids": np.array([sequence], dtype=np.int64),
            "attention_mask": np.ones((1, count), dtype=np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        found: npt.NDArray[np.float32] = self._infer.infer(inputs)["logits"][0].copy()
        return found


if __name__ == "__main__":
    serve(OpenVino(sys.argv[1], int(sys.argv[2])))
