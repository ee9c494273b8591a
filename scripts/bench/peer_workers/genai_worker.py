"""onnxruntime-genai on its own int4 export: a Generator for one chat, one Generator of a batch for several.

    genai_worker.py MODEL MODEL_OF_ALL_LOGITS THREADS

Its Engine batches continuously only on CUDA (paged attention); on the CPU it has a static batch, which this is.
MODEL has its head pruned to the last position, which is faster; the other gives the logits that are compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from serving import Arrived, serve, shared

LONGEST = 2048
"""Tokens of prompt and answer that its cache is made for, as ours is."""
NEVER = 49151
"""Stands in for the end of sequence, which it cannot be told to ignore; an answer that ends early is an error."""


class GenAi:
    keeps = False  # one Generator keeps one chat, for its next turn

    def __init__(self, model: str, model_of_logits: str, threads: int) -> None:
        self._folder, self._folder_of_logits, self._threads = model, model_of_logits, threads
        self._generator: Any = None

    def load(self) -> dict[str, str]:
        import onnxruntime_genai

        self._library = onnxruntime_genai
        self._model = self._opened(self._folder)
        version = onnxruntime_genai.__version__
        return {"version": f"onnxruntime-genai {version}"}

    def _opened(self, folder: str) -> Any:
        config = self._library.Config(folder)
        options = {"intra_op_num_threads": self._threads}
        config.overlay(json.dumps({"model": {"eos_token_id": NEVER, "decoder": {"session_options": options}}}))
        return self._library.Model(config)

    def _begun(self, model: Any, rows: int) -> Any:
        params = self._library.GeneratorParams(model)
        params.set_search_options(max_length=LONGEST, batch_size=rows, do_sample=False)
        return self._library.Generator(model, params)

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, arrived: Arrived) -> None:
        if len(prompts) == 1:
            prompt = list(prompts[0])
            generator = self._behind(prompt)
        else:
            lengths = sorted({len(prompt) for prompt in prompts})
            if len(lengths) > 1:
                raise ValueError(f"a static batch takes prompts of one length; these have {lengths} tokens")
            generator = self._begun(self._model, len(prompts))
            generator.append_tokens(np.array(prompts, dtype=np.int32))
        for number in range(max_tokens):
            if generator.is_done():
                raise RuntimeError(f"its answer ended after {number} of {max_tokens} tokens")
            generator.generate_next_token()
            for which, token in enumerate(generator.get_next_tokens()):
                arrived(which, token)

    def _behind(self, prompt: list[int]) -> Any:
        """A Generator that has read `prompt`; the one of the chat before goes on where it begins alike."""
        if self._generator is not None:
            # the last token that it gave is not in its cache yet, so it is read again
            known = min(shared(list(self._generator.get_sequence(0)), prompt), len(prompt) - 1)
            if known > 16:
                self._generator.rewind_to(known)
                self._generator.append_tokens(np.array(prompt[known:], dtype=np.int32))
                return self._generator
        self._generator = self._begun(self._model, 1)
        self._generator.append_tokens(np.array(prompt, dtype=np.int32))
        return self._generator

    def logits(self, sequence: Sequence[int]) -> npt.NDArray[np.float32]:
        if not hasattr(self, "_model_of_logits"):
            self._model_of_logits = self._opened(self._folder_of_logits)
        generator = self._begun(self._model_of_logits, 1)
        generator.append_tokens(np.array(sequence, dtype=np.int32))
        found: npt.NDArray[np.float32] = np.array(generator.get_output("logits"))[0]
        return found


if __name__ == "__main__":
    serve(GenAi(sys.argv[1], sys.argv[2], int(sys.argv[3])))
