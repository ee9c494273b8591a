"""Requests as other clients than ours send them: with Triton's own gRPC client, and over HTTP."""

from __future__ import annotations

import http.client
import json
import queue
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from hermes_deploy.protocol.failures import parse_failure
from hermes_deploy.serving import Server


def over_http(server: Server, model: str, body: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Status and events of Triton's generate_stream."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(body))
    answer = connection.getresponse()
    lines = answer.read().decode().split("\n")  # splitlines() knows more ends of lines than SSE does
    connection.close()
    return answer.status, [json.loads(line.removeprefix("data: ")) for line in lines if line]


def send(raw: triton.InferenceServerClient, model: str, **inputs: npt.NDArray[Any]) -> list[dict[str, Any]]:
    """Outputs of every response, as arrays by name. Raises what the server says."""
    answers: queue.Queue[Any] = queue.Queue()
    raw.start_stream(lambda result, error: answers.put(error or result))
    tensors = []
    for name, array in inputs.items():
        tensor = triton.InferInput(name, list(array.shape), str(np_to_triton_dtype(array.dtype)))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    try:
        raw.async_stream_infer(model, tensors, enable_empty_final_response=True)
        outputs = []
        while True:
            answer = answers.get(timeout=60)
            if isinstance(answer, Exception):
                raise answer
            response = answer.get_response()
            if response.outputs:
                outputs.append({o.name: answer.as_numpy(o.name) for o in response.outputs})
            if response.parameters["triton_final_response"].bool_param:
                return outputs
    finally:
        raw.stop_stream()


def failure(raw: triton.InferenceServerClient, model: str, **inputs: npt.NDArray[Any]) -> tuple[str, str]:
    """Code and message of the error that the server answers with."""
    with pytest.raises(InferenceServerException) as failed:
        send(raw, model, **inputs)
    found = parse_failure(failed.value.message())
    assert found is not None, failed.value.message()
    return found


def text(value: bytes) -> npt.NDArray[Any]:
    return np.array([value], dtype=np.object_)
