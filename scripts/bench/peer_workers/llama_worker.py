"""llama.cpp through its own C interface: one context of eight sequences. `llama_worker.py MODEL.gguf THREADS`

As llama-server does it: prompts of several sequences are read in one batch as far as they fit, answers go on together,
and what a sequence has read before and a prompt begins with is kept.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from serving import Arrived, serve, shared

SEQUENCES, LONGEST, AT_ONCE = 8, 2048, 512


class Llama:
    keeps = False  # row 0 keeps one chat, for its next turn

    def __init__(self, model: str, threads: int) -> None:
        self._path, self._threads = model, threads

    def load(self) -> dict[str, str]:
        import llama_cpp

        self._cpp: Any = llama_cpp
        self._log = llama_cpp.llama_log_callback(_silent)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(self._path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {self._path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = SEQUENCES * LONGEST, SEQUENCES
        params.n_batch, params.n_ubatch = LONGEST, AT_ONCE
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = False  # rows of their own: faster with several chats
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(LONGEST, 0, 1)
        self._read: list[list[int]] = [[] for _ in range(SEQUENCES)]
        system = llama_cpp.llama_print_system_info().decode()
        return {"version": f"llama-cpp-python {llama_cpp.__version__}", "built for": system}

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, arrived: Arrived) -> None:
        tokens = self._read_all(prompts, arrived)
        for _ in range(max_tokens - 1):
            self._decode([(token, len(self._read[row]), row, True) for row, token in enumerate(tokens)])
            for row, token in enumerate(tokens):
                self._read[row].append(token)
            tokens = [self._best(row) for row in range(len(tokens))]
            for row, token in enumerate(tokens):
                arrived(row, token)

    def _read_all(self, prompts: Sequence[Sequence[int]], arrived: Arrived) -> list[int]:
        """The first token of each answer."""
        rests = [self._rest(row, list(prompt)) for row, prompt in enumerate(prompts)]
        tokens: list[int] = []
        while len(tokens) < len(rests):
            begun, entries, lasts = len(tokens), list[tuple[int, int, int, bool]](), list[int]()
            for rest in rests[begun:]:
                if entries and len(entries) + len(rest) > LONGEST:
                    break
                entries += rest
                lasts.append(len(entries) - 1)
            self._decode(entries)
            for last in lasts:
                tokens.append(self._best(last))
                arrived(len(tokens) - 1, tokens[-1])
        return tokens

    def _rest(self, row: int, prompt: list[int]) -> list[tuple[int, int, int, bool]]:
        """What is to be read of `prompt` behind what `row` has read already."""
        known = min(shared(self._read[row], prompt), len(prompt) - 1)
        self._cpp.llama_memory_seq_rm(self._memory, row, known, -1)
        self._read[row] = prompt
        return [(prompt[at], at, row, at + 1 == len(prompt)) for at in range(known, len(prompt))]

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, row, whether its logits are wanted) of each."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for place, (token, position, row, wanted) in enumerate(entries):
            batch.token[place] = token
            batch.pos[place] = position
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = row
            batch.logits[place] = wanted
        if code := self._cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode gave {code}")

    def _row(self, which: int) -> npt.NDArray[np.float32]:
        row: npt.NDArray[np.float32] = np.ctypeslib.as_array(
            self._cpp.llama_get_logits_ith(self._context, which), (self._vocab,)
        )
        return row

    def _best(self, which: int) -> int:
        return int(self._row(which).argmax())

    def logits(self, sequence: Sequence[int]) -> npt.NDArray[np.float32]:
        self._cpp.llama_memory_seq_rm(self._memory, 0, 0, -1)
        self._read[0] = []
        self._decode([(token, at, 0, True) for at, token in enumerate(sequence)])
        found = np.stack([self._row(at).copy() for at in range(len(sequence))])
        self._cpp.llama_memory_seq_rm(self._memory, 0, 0, -1)
        return found


def _silent(_level: int, _text: bytes, _data: Any) -> None:
    pass


if __name__ == "__main__":
    serve(Llama(sys.argv[1], int(sys.argv[2])))
