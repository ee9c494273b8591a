"""As much of triton_python_backend_utils as the models use, in memory, for faults that a healthy Triton does not
show. What it stands for runs in test_doors.py on the real thing."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonError(Exception):
    INVALID_ARG, UNAVAILABLE, INTERNAL, UNSUPPORTED = "INVALID_ARG", "UNAVAILABLE", "INTERNAL", "UNSUPPORTED"
    CANCELLED, NOT_FOUND = "CANCELLED", "NOT_FOUND"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Tensor:
    label: str
    array: npt.NDArray[Any]

    def name(self) -> str:
        return self.label

    def as_numpy(self) -> npt.NDArray[Any]:
        return self.array


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.tensors = {t.name(): t.as_numpy() for t in output_tensors or []}
        self.error = error


@dataclass
class Sender:
    """Records what is sent; `cancelled` may be set by the test."""

    sent: list[InferenceResponse] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    cancelled: bool = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.done.is_set(), "nothing may follow the final response"
        if response is not None:
            self.sent.append(response)
        if flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.done.set()


class Request:
    def __init__(self, **inputs: npt.NDArray[Any]) -> None:
        self.inputs = inputs
        self.sender = Sender()

    def request_id(self) -> str:
        return "the-id"

    def get_response_sender(self) -> Sender:
        return self.sender


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return Tensor(name, request.inputs[name]) if name in request.inputs else None


class MetricFamily:
    """Series by labels, as numbers that a test may read. test_metrics.py runs on the real ones."""

    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name, self.description, self.kind = name, description, kind

    def Metric(self, labels: dict[str, str]) -> Series:
        return Series(labels)


@dataclass
class Series:
    labels: dict[str, str]
    value: float = 0.0

    def set(self, value: float) -> None:
        self.value = value

    def increment(self, value: float) -> None:
        self.value += value
