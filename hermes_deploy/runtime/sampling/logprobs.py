"""What a model itself thinks of tokens: natural log probabilities of raw logits, in float64."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.sampling.selection import heaviest
from hermes_deploy.runtime.sampling.settings import TokenLogprobs


def token_logprobs(row: npt.NDArray[np.float32], peak: float, token: int, top: int) -> TokenLogprobs:
    """Of `token` and of the `top` likeliest tokens of `row` [vocab], whose largest logit is `peak`, a finite one.

    Of equal ones the lower id comes first. A token of logit -inf has log probability -inf and is never among
    the likeliest, which are fewer then.
    """
    logs = row.astype(np.float64)
    logs -= peak
    picked = float(logs[token])
    likeliest = heaviest(row, peak, top).tolist() if top else []
    of_likeliest = logs[likeliest].tolist()
    total = math.log(float(np.exp(logs, out=logs).sum()))
    return TokenLogprobs(
        picked - total, tuple((t, log - total) for t, log in zip(likeliest, of_likeliest, strict=True))
    )


def prompt_logprobs(logits: npt.NDArray[np.float32], following: npt.NDArray[np.int64], top: int) -> list[TokenLogprobs]:
    """Of the token `following` [n] that came after each row of `logits` [n, vocab], and of the `top` likeliest there.

    Raises RequestError INTERNAL for a row that is not finite.
    """
    rows = np.ascontiguousarray(logits, dtype=np.float32)
    results = []
    for i, token in enumerate(following.tolist()):
        peak = float(rows[i].max())  # which is NaN where a NaN is
        if not math.isfinite(peak):
            raise RequestError(
                f"the engine gave logits that are not finite before the prompt's token {token}; the engine is damaged",
                "INTERNAL",
            )
        results.append(token_logprobs(rows[i], peak, token, top))
    return results
