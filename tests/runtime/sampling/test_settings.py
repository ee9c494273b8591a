"""What a request may ask of sampling is refused in words where it is out of range, and taken where it is not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.sampling import Sampling

NAN, INF = float("nan"), float("inf")
NUMBERS = [
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, "0 (greedy) to 100"),
        ("temperature", 100.5, "0 (greedy) to 100"),
        ("top_k", -1, "0 (off) or more"),
        ("top_p", 0.0, "more than 0 and at most 1 (off)"),
        ("top_p", 1.5, "more than 0 and at most 1 (off)"),
        ("min_p", -0.1, "0 (off) to 1"),
        ("min_p", 1.1, "0 (off) to 1"),
        ("typical_p", 0, "more than 0 and at most 1 (off)"),
        ("typical_p", 1.01, "more than 0 and at most 1 (off)"),
        ("repetition_penalty", 0.0, "more than 0 and at most 10 (1 is off)"),
        ("repetition_penalty", 10.1, "more than 0 and at most 10 (1 is off)"),
        ("presence_penalty", -2.1, "-2 to 2 (0 is off)"),
        ("frequency_penalty", 2.1, "-2 to 2 (0 is off)"),
        ("seed", -1, "0 to 2^64 - 1"),
        ("seed", 2**64, "0 to 2^64 - 1"),
        ("temperature", 10**400, "0 (greedy) to 100"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(RequestError, match=re.escape(f"{name} is {value}; allowed is {allowed}")):
        Sampling(**{name: value})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_number_that_is_not_finite_is_refused(name: str, value: float) -> None:
    with pytest.raises(RequestError, match=f"{name} is {value}; allowed is"):
        Sampling(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["0.5", True, None, [0.5], 1j])
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} is {re.escape(repr(value))}, which is no number"):
        Sampling(**{name: value})


@pytest.mark.parametrize("name", ["top_k", "seed"])
@pytest.mark.parametrize("value", ["5", 5.0, True, [5]])
def test_what_is_no_whole_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} is {re.escape(repr(value))}, which is no whole number"):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logit_bias", {5: 1.0}, "logit_bias is {5: 1.0}; it holds pairs"),
        ("logit_bias", ((5,),), "logit_bias holds (5,); each entry is a pair"),
        ("logit_bias", (("5", 1.0),), "a token id in logit_bias is '5', which is no whole number"),
        ("logit_bias", ((-5, 1.0),), "a token id in logit_bias is -5; allowed is 0 or more"),
        ("logit_bias", ((5, 101.0),), "logit_bias of token 5 is 101.0; allowed is -100 to 100"),
        ("logit_bias", ((5, -INF),), "logit_bias of token 5 is -inf; allowed is -100 to 100"),
        ("logit_bias", ((5, NAN),), "logit_bias of token 5 is nan; allowed is -100 to 100"),
        ("logit_bias", ((5, "1"),), "logit_bias of token 5 is '1', which is no number"),
        ("logit_bias", ((5, 1.0), (5, 2.0)), "logit_bias names token 5 twice"),
        ("logit_bias", tuple((i, 1.0) for i in range(1025)), "logit_bias has 1025 entries; allowed are at most 1024"),
        ("bad_words", "damn", "bad_words is 'damn'; it holds sequences of token ids"),
        ("bad_words", ("damn",), "bad_words holds 'damn'; each entry is a sequence of token ids"),
        ("bad_words", (5,), "bad_words holds 5; each entry is a sequence of token ids"),
        ("bad_words", ((),), "bad_words holds 0 token ids in a row; allowed is 1 to 64"),
        ("bad_words", (tuple(range(65)),), "bad_words holds 65 token ids in a row; allowed is 1 to 64"),
        ("bad_words", ((1, -2),), "a token id in bad_words is -2; allowed is 0 or more"),
        ("bad_words", ((1, 2.0),), "a token id in bad_words is 2.0, which is no whole number"),
        ("bad_words", ((1,),) * 257, "bad_words has 257 sequences; allowed are at most 256"),
    ],
)
def test_biases_and_bad_words_that_make_no_sense_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        Sampling(**{name: value})


def test_the_ends_of_every_range_and_numbers_of_numpy_are_taken() -> None:
    Sampling(0, 0, 1, 0, 0, 1, 10, -2, -2, ((0, -100),), ((0,),))
    Sampling(
        temperature=np.float32(100),  # type: ignore[arg-type]
        top_k=np.int64(10**6),  # type: ignore[arg-type]
        top_p=1e-9,
        seed=2**64 - 1,
        min_p=1,
        typical_p=1e-9,
        repetition_penalty=1e-9,
        presence_penalty=2,
        frequency_penalty=2,
        logit_bias=tuple((i, 100.0) for i in range(1024)),
        bad_words=(tuple(range(64)),) * 256,
    )
