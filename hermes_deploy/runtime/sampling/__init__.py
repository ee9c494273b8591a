"""Logits to tokens: what a request may set, and one pick a chat. Rows in, ids out; knows no engine, text or clock.

`settings` are the records, `processors` change logits, `distribution` says what is drawn from, `picking` draws.
"""

from hermes_deploy.runtime.sampling.logprobs import prompt_logprobs
from hermes_deploy.runtime.sampling.picking import CONSTRAINT_FAILED, NOT_FINITE, NOTHING_ALLOWED, Sampler, pick
from hermes_deploy.runtime.sampling.settings import (
    LONGEST_BAD_WORD,
    MOST_BAD_WORDS,
    MOST_BIASES,
    MOST_LOGPROBS,
    Constraint,
    Sampling,
    TokenLogprobs,
)

__all__ = [
    "CONSTRAINT_FAILED",
    "LONGEST_BAD_WORD",
    "MOST_BAD_WORDS",
    "MOST_BIASES",
    "MOST_LOGPROBS",
    "NOTHING_ALLOWED",
    "NOT_FINITE",
    "Constraint",
    "Sampler",
    "Sampling",
    "TokenLogprobs",
    "pick",
    "prompt_logprobs",
]
