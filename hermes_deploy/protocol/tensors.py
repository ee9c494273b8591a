"""Every input and output of every Triton model, in one table. Standard library only.

`config.pbtxt` is generated from it, the models read requests by it, the client fills it.
dtypes are Triton's wire names; dims as in config.pbtxt (-1 = any). Models have max_batch_size 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DType = Literal["BYTES", "INT32", "INT64", "UINT64", "FP32"]

ENSEMBLE = "hermes"
PREPROCESS = "chatml_preprocess"
ENGINE = "hermes_engine"
POSTPROCESS = "chatml_postprocess"

FINISH_REASONS = ("stop", "length", "cancelled", "error")


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: DType
    dims: tuple[int, ...]
    meaning: str
    optional: bool = False


MESSAGES = Tensor(
    "messages",
    "BYTES",
    (1,),
    'UTF-8 JSON array of {"role": "system"|"user"|"assistant", "content": text}',
)
INPUT_IDS = Tensor("input_ids", "INT64", (-1,), "token ids of the whole rendered prompt")

SAMPLING: tuple[Tensor, ...] = (
    Tensor("max_tokens", "INT32", (1,), "most tokens to generate; default 256, bounded by the context", True),
    Tensor("temperature", "FP32", (1,), "0 = greedy; default from the model's generation_config", True),
    Tensor("top_k", "INT32", (1,), "0 = off", True),
    Tensor("top_p", "FP32", (1,), "in (0, 1]; 1 = off", True),
    Tensor("seed", "UINT64", (1,), "same seed, same prompt, same answer; default: a fresh one", True),
    Tensor("stop", "BYTES", (-1,), "texts that end the answer; they are not part of it", True),
)

TEXT = Tensor("text", "BYTES", (1,), "UTF-8 text released by this piece; concatenated = the answer")
TOKEN_IDS = Tensor("token_ids", "INT64", (-1,), "token ids generated since the last piece")
FINISH_REASON = Tensor(
    "finish_reason", "BYTES", (1,), f"empty until the last piece, then one of {', '.join(FINISH_REASONS)}"
)
ERROR_CODE = Tensor("error_code", "BYTES", (1,), "gRPC status name of a failure after the first piece, else empty")
ERROR_MESSAGE = Tensor("error_message", "BYTES", (1,), "what went wrong and what to do, else empty")
PROMPT_TOKENS = Tensor("prompt_tokens", "INT32", (1,), "tokens of the prompt")
COMPLETION_TOKENS = Tensor("completion_tokens", "INT32", (1,), "tokens generated so far")

PIECE: tuple[Tensor, ...] = (
    TEXT,
    TOKEN_IDS,
    FINISH_REASON,
    ERROR_CODE,
    ERROR_MESSAGE,
    PROMPT_TOKENS,
    COMPLETION_TOKENS,
)


def _optional(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.dtype, tensor.dims, tensor.meaning, optional=True)


@dataclass(frozen=True)
class ModelTensors:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


MODELS: dict[str, ModelTensors] = {
    # exactly one of messages (chat door) and input_ids (id door) is given
    ENGINE: ModelTensors((_optional(MESSAGES), _optional(INPUT_IDS), *SAMPLING), PIECE),
    # optional, so that it reaches the model, which says that it is missing: an ensemble without a required
    # input ends at once, without an error
    PREPROCESS: ModelTensors((_optional(MESSAGES),), (INPUT_IDS,)),
    POSTPROCESS: ModelTensors(PIECE, PIECE),
    ENSEMBLE: ModelTensors((_optional(MESSAGES), *SAMPLING), PIECE),
}
