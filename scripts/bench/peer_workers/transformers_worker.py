"""transformers in bfloat16 on torch's CPU kernels. `transformers_worker.py CHECKPOINT THREADS`"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from serving import Arrived, serve, shared


class Transformers:
    keeps = False  # its cache is the caller's: one chat's is kept for its next turn

    def __init__(self, checkpoint: str, threads: int) -> None:
        self._checkpoint, self._threads = checkpoint, threads

    def load(self) -> dict[str, str]:
        import torch
        import transformers

        torch.set_num_threads(self._threads)
        self._torch, self._library = torch, transformers
        self._model = transformers.AutoModelForCausalLM.from_pretrained(self._checkpoint, dtype=torch.bfloat16).eval()
        self._read: list[int] = []
        self._cache = transformers.DynamicCache()
        return {"version": f"transformers {transformers.__version__}, torch {torch.__version__}"}

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, arrived: Arrived) -> None:
        torch = self._torch
        with torch.inference_mode():
            if len(prompts) == 1:
                self._ask_one(list(prompts[0]), max_tokens, arrived)
            else:
                self._ask_many(prompts, max_tokens, arrived)

    def _ask_one(self, prompt: list[int], max_tokens: int, arrived: Arrived) -> None:
        torch = self._torch
        known = min(shared(self._read, prompt), len(prompt) - 1)
        if surplus := self._cache.get_seq_length() - known:
            self._cache.crop(-surplus) if known else self._forget()
        tokens = torch.tensor([prompt[known:]])
        self._read = list(prompt)
        for number in range(max_tokens):
            out = self._model(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            token = int(out.logits[0, -1].argmax())
            arrived(0, token)
            tokens = torch.tensor([[token]])
            if number + 1 < max_tokens:
                self._read.append(token)

    def _ask_many(self, prompts: Sequence[Sequence[int]], max_tokens: int, arrived: Arrived) -> None:
        """One batch, padded on the left."""
        torch = self._torch
        longest = max(map(len, prompts))
        ids = torch.zeros((len(prompts), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = self._library.DynamicCache()
        for _ in range(max_tokens):
            out = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            for row, token in enumerate(ids[:, 0].tolist()):
                arrived(row, token)
            mask = torch.cat([mask, torch.ones((len(prompts), 1), dtype=torch.long)], 1)
            positions = positions[:, -1:] + 1

    def _forget(self) -> None:
        self._cache = self._library.DynamicCache()

    def logits(self, sequence: Sequence[int]) -> npt.NDArray[np.float32]:
        torch = self._torch
        with torch.inference_mode():
            found: npt.NDArray[np.float32] = self._model(torch.tensor([list(sequence)])).logits[0].float().numpy()
        return found


if __name__ == "__main__":
    serve(Transformers(sys.argv[1], int(sys.argv[2])))
