"""Every input and output of every Triton model, in one table. Standard library only.

`config.pbtxt` is generated from it, the models read requests by it, the client fills it.
dtypes are Triton's wire names; dims as in config.pbtxt (-1 = any). Models have max_batch_size 0.
Ranges are said here and checked where a request is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

DType = Literal["BYTES", "BOOL", "INT32", "INT64", "UINT64", "FP32"]

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
    True,
)
PROMPT = Tensor(
    "prompt",
    "BYTES",
    (1,),
    "UTF-8 text of the whole rendered prompt, in which control tokens are control tokens: only from who may write them",
    True,
)
INPUT_IDS = Tensor("input_ids", "INT64", (-1,), "token ids of the whole rendered prompt")

MAX_LOGPROBS = 20
"""Alternatives with each token that can be asked for, as in OpenAI's API."""

SAMPLING: tuple[Tensor, ...] = (
    Tensor("max_tokens", "INT32", (1,), "most tokens to generate; default 256, bounded by the context", True),
    Tensor("min_tokens", "INT32", (1,), "no stop id or stop text ends the answer before that many; default 0", True),
    Tensor("temperature", "FP32", (1,), "0 = greedy; default from the model's generation_config", True),
    Tensor("top_k", "INT32", (1,), "0 = off", True),
    Tensor("top_p", "FP32", (1,), "in (0, 1]; 1 = off", True),
    Tensor("min_p", "FP32", (1,), "least probability, as a share of the likeliest token's; 0 to 1, 0 = off", True),
    Tensor("typical_p", "FP32", (1,), "locally typical sampling, in (0, 1]; 1 = off", True),
    Tensor("repetition_penalty", "FP32", (1,), "over prompt and answer, in (0, 10]; 1 = off", True),
    Tensor("presence_penalty", "FP32", (1,), "over the answer, -2 to 2; 0 = off", True),
    Tensor("frequency_penalty", "FP32", (1,), "over the answer, -2 to 2; 0 = off", True),
    Tensor("seed", "UINT64", (1,), "same seed, same prompt, same answer; default: a fresh one", True),
    Tensor("n", "INT32", (1,), "answers to this prompt, at most as many as the server has slots; default 1", True),
    Tensor("stop", "BYTES", (-1,), "texts that end the answer; they are not part of it", True),
    Tensor("stop_token_ids", "INT64", (-1,), "token ids that end the answer beside the model's own", True),
    Tensor("ignore_eos", "BOOL", (1,), "the model's own stop ids do not end the answer; default false", True),
    Tensor("bad_words", "BYTES", (-1,), "texts that never come, each alone and after a space", True),
    Tensor("logit_bias_ids", "INT64", (-1,), "token ids whose logits are changed", True),
    Tensor("logit_bias_values", "FP32", (-1,), "what is added to each, -100 to 100; as many as the ids", True),
    Tensor("logprobs", "INT32", (1,), f"alternatives with each token, 0 to {MAX_LOGPROBS}; default: no logprobs", True),
    Tensor("prompt_logprobs", "INT32", (1,), "the same for the tokens of the prompt", True),
    Tensor("priority", "INT32", (1,), "-100 to 100, larger goes first; default 0", True),
    Tensor("client", "BYTES", (1,), "whose request it is: clients share free slots evenly", True),
    Tensor("timeout_ms", "INT32", (1,), "milliseconds after which the request ends with DEADLINE_EXCEEDED", True),
)

STREAM = Tensor(
    "stream",
    "BOOL",
    (1,),
    "false: the whole answer in one response, which HTTP generate needs; default true",
    True,
)

# Triton 2.51 tells a model inside an ensemble nothing of its caller: these are how it hears that the caller has gone
CANCEL_KEY = Tensor(
    "cancel_key",
    "BYTES",
    (1,),
    "16 to 128 random characters by which this request can be held and cancelled; whoever knows them can",
    True,
)
LEASE_MS = Tensor(
    "lease_ms",
    "INT32",
    (1,),
    "with cancel_key: it ends when nobody has renewed it for so many milliseconds",
    True,
)
LEASE: tuple[Tensor, ...] = (CANCEL_KEY, LEASE_MS)

HOLD = Tensor(
    "hold",
    "BYTES",
    (1,),
    "cancel_key of a request, alone: it ends when this call is cancelled or its caller goes",
    True,
)
CANCEL = Tensor("cancel", "BYTES", (1,), "cancel_key of a request, alone: it ends now, on either door", True)
RENEW = Tensor(
    "renew",
    "BYTES",
    (-1,),
    "cancel_keys of requests, alone: the lease of each begins anew; keys that are not known are passed over",
    True,
)
BY_KEY: tuple[Tensor, ...] = (HOLD, CANCEL, RENEW)
"""Calls of the engine that ask for no answer, but speak of other requests."""

TEXT = Tensor("text", "BYTES", (1,), "UTF-8 text released by this piece; concatenated = the answer")
TOKEN_IDS = Tensor("token_ids", "INT64", (-1,), "token ids generated since the last piece")
FINISH_REASON = Tensor(
    "finish_reason", "BYTES", (1,), f"empty until the last piece, then one of {', '.join(FINISH_REASONS)}"
)
PROMPT_TOKENS = Tensor("prompt_tokens", "INT32", (1,), "tokens of the prompt")
COMPLETION_TOKENS = Tensor("completion_tokens", "INT32", (1,), "tokens generated so far, of this answer")

# a tensor in a response costs the server about 10 microseconds of CPU, 35 through the ensemble (a response of seven:
# 250 and 640): what seldom says anything is left out where it says nothing
ERROR_CODE = Tensor("error_code", "BYTES", (1,), "gRPC status name of a failure after the first piece", True)
ERROR_MESSAGE = Tensor("error_message", "BYTES", (1,), "what went wrong and what to do", True)
INDEX = Tensor("index", "INT32", (1,), "which of the n answers this is a piece of; left out = 0", True)
CACHED_TOKENS = Tensor(
    "cached_tokens",
    "INT32",
    (1,),
    "prompt tokens that were in the cache, in an answer's first piece; left out = 0",
    True,
)
TOKEN_LOGPROBS = Tensor("token_logprobs", "FP32", (-1,), "natural log probability of each of token_ids", True)
TOP_LOGPROB_IDS = Tensor(
    "top_logprob_ids", "INT64", (-1,), "ids of the likeliest tokens in the place of each of token_ids, best first", True
)
TOP_LOGPROBS = Tensor("top_logprobs", "FP32", (-1,), "their log probabilities; both are row-major [tokens, k]", True)
PROMPT_TOKEN_IDS = Tensor("prompt_token_ids", "INT64", (-1,), "the prompt, with its logprobs in the first piece", True)
PROMPT_TOKEN_LOGPROBS = Tensor(
    "prompt_token_logprobs", "FP32", (-1,), "of each of prompt_token_ids but the first, which has none", True
)
PROMPT_TOP_LOGPROB_IDS = Tensor("prompt_top_logprob_ids", "INT64", (-1,), "as top_logprob_ids", True)
PROMPT_TOP_LOGPROBS = Tensor("prompt_top_logprobs", "FP32", (-1,), "as top_logprobs", True)

PIECE: tuple[Tensor, ...] = (
    TEXT,
    TOKEN_IDS,
    FINISH_REASON,
    PROMPT_TOKENS,
    COMPLETION_TOKENS,
    ERROR_CODE,
    ERROR_MESSAGE,
    INDEX,
    CACHED_TOKENS,
    TOKEN_LOGPROBS,
    TOP_LOGPROB_IDS,
    TOP_LOGPROBS,
    PROMPT_TOKEN_IDS,
    PROMPT_TOKEN_LOGPROBS,
    PROMPT_TOP_LOGPROB_IDS,
    PROMPT_TOP_LOGPROBS,
)
"""What is optional here may be missing from a response."""


PROMPT_AS_TEXT: tuple[Tensor, ...] = (MESSAGES, PROMPT)
"""The ensemble takes exactly one of these. All are optional, so that a request with none comes to the model, which says
so: an ensemble without a required input ends at once, without an error."""
PROMPT_FORMS: tuple[Tensor, ...] = (*PROMPT_AS_TEXT, replace(INPUT_IDS, optional=True))
"""The engine takes exactly one of these."""


@dataclass(frozen=True)
class ModelTensors:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


MODELS: dict[str, ModelTensors] = {
    ENGINE: ModelTensors((*PROMPT_FORMS, *SAMPLING, STREAM, *LEASE, *BY_KEY), PIECE),
    PREPROCESS: ModelTensors(PROMPT_AS_TEXT, (INPUT_IDS,)),
    POSTPROCESS: ModelTensors(PIECE, PIECE),
    ENSEMBLE: ModelTensors((*PROMPT_AS_TEXT, *SAMPLING, STREAM, *LEASE), PIECE),
}
