"""The first step of the ensemble: what it refuses and where it fails is the caller's to read, not the log's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hermes_deploy.chat import Room
from hermes_deploy.serving.preprocess import Preprocess
from tests.serving import fake_triton
from tests.serving.fake_triton import InferenceResponse, Request

CANARY = "CANARYbird"


class Failing:
    def encode_chat(self, messages: Any) -> list[int]:
        raise ValueError(f"cannot encode {messages}")


def ask(messages: bytes) -> InferenceResponse:
    step = Preprocess(fake_triton, Failing(), Room(100, 8))  # type: ignore[arg-type]
    (answer,) = step.execute([Request(messages=np.array([messages], np.object_))])
    assert isinstance(answer, InferenceResponse)
    return answer


def test_a_refusal_is_told_with_what_was_found(capfd: pytest.CaptureFixture[str]) -> None:
    error = ask(f'[{{"role": "{CANARY}", "content": ""}}]'.encode()).error
    assert error is not None
    assert (error.code, CANARY in str(error)) == ("INVALID_ARG", True)
    assert capfd.readouterr() == ("", "")


def test_a_fault_of_its_own_is_told_too_and_its_words_are_not_logged(capfd: pytest.CaptureFixture[str]) -> None:
    error = ask(f'[{{"role": "user", "content": "{CANARY}"}}]'.encode()).error
    assert error is not None
    assert (error.code, CANARY in str(error)) == ("INTERNAL", True)
    logged = capfd.readouterr().err
    assert "in encode_chat" in logged
    assert CANARY not in logged
