"""Which requests can never run on an engine of that size. Pure: a Generation in, a RequestError or nothing out."""

from __future__ import annotations

import numpy as np

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.sampling import MOST_LOGPROBS
from hermes_deploy.runtime.stream import Generation

MAX_PRIORITY = 100


def check(asked: Generation, vocab_size: int, max_context: int) -> None:
    """Raises RequestError, OUT_OF_RANGE for a prompt that is too long and INVALID_ARGUMENT for all else.

    `max_tokens` may be more than the context has room for: the answer then ends with "length".
    """
    prompt = asked.prompt
    if prompt.ndim != 1 or not np.issubdtype(prompt.dtype, np.integer):
        raise RequestError(
            f"the prompt is {prompt.dtype} of shape {list(prompt.shape)}; it must be a list of token ids"
        )
    if len(prompt) == 0:
        raise RequestError("the prompt has no tokens; give at least one")
    check_length(len(prompt), max_context)
    if asked.max_tokens < 1:
        raise RequestError(f"max_tokens is {asked.max_tokens}; allowed is 1 or more")
    if not 0 <= asked.min_tokens <= asked.max_tokens:
        raise RequestError(f"min_tokens is {asked.min_tokens}; allowed is 0 to max_tokens, which is {asked.max_tokens}")
    for name, count in (("logprobs", asked.logprobs), ("prompt_logprobs", asked.prompt_logprobs)):
        if count is not None and not 0 <= count <= min(MOST_LOGPROBS, vocab_size):
            raise RequestError(f"{name} is {count}; allowed is 0 to {min(MOST_LOGPROBS, vocab_size)} alternatives")
    if not -MAX_PRIORITY <= asked.priority <= MAX_PRIORITY:
        raise RequestError(f"priority is {asked.priority}; allowed is -{MAX_PRIORITY} to {MAX_PRIORITY}")
    _check_ids("the prompt holds token id", int(prompt.min()), int(prompt.max()), vocab_size)
    if asked.stop_ids:
        _check_ids("the stop ids hold", min(asked.stop_ids), max(asked.stop_ids), vocab_size)


def check_length(tokens: int, max_context: int) -> None:
    """Raises RequestError, OUT_OF_RANGE, for a prompt of more tokens than fit."""
    if tokens >= max_context:
        raise RequestError(
            f"the prompt has {tokens} tokens; the context of this server is {max_context} tokens, of which "
            f"at least one is for the answer, so a prompt may have at most {max_context - 1}",
            "OUT_OF_RANGE",
        )


def _check_ids(what: str, low: int, high: int, vocab_size: int) -> None:
    if low < 0 or high >= vocab_size:
        raise RequestError(f"{what} {low if low < 0 else high}; this model has ids 0 to {vocab_size - 1}")
