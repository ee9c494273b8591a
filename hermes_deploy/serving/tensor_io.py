"""Triton tensors to values and back, by the table in protocol/tensors.py.

`pb_utils` is Triton's triton_python_backend_utils, handed in: it exists only inside its stub.
Every tensor is checked for dtype and shape; what is wrong is a RequestError that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import RequestError
from hermes_deploy.protocol.failures import failure_text
from hermes_deploy.protocol.tensors import (
    COMPLETION_TOKENS,
    ERROR_CODE,
    ERROR_MESSAGE,
    FINISH_REASON,
    PROMPT_TOKENS,
    TEXT,
    TOKEN_IDS,
    Tensor,
)

_NUMPY: dict[str, Any] = {
    "BYTES": np.object_,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT64": np.uint64,
    "FP32": np.float32,
}

_TRITON_CODES = {
    "INVALID_ARGUMENT": "INVALID_ARG",
    "OUT_OF_RANGE": "INVALID_ARG",
    "UNIMPLEMENTED": "UNSUPPORTED",
    "RESOURCE_EXHAUSTED": "UNAVAILABLE",
    "DEADLINE_EXCEEDED": "UNAVAILABLE",
}
"""gRPC status name -> Triton's, where they differ; Triton knows fewer."""


@dataclass(frozen=True)
class Piece:
    """One response of the engine; fields as in protocol/tensors.py."""

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str = ""
    error_code: str = ""
    error_message: str = ""


def read(pb_utils: Any, request: Any, tensor: Tensor) -> npt.NDArray[Any] | None:
    """The tensor's array, or None where an optional one is not given."""
    given = pb_utils.get_input_tensor_by_name(request, tensor.name)
    if given is None:
        if tensor.optional:
            return None
        raise RequestError(f"input {tensor.name} is missing: {tensor.meaning}")
    array: npt.NDArray[Any] = given.as_numpy()
    if array.dtype != _NUMPY[tensor.dtype]:
        raise RequestError(f"input {tensor.name} is {array.dtype}; allowed is {tensor.dtype}")
    wanted = tuple("any" if d == -1 else d for d in tensor.dims)
    if array.ndim != len(wanted) or any(w not in ("any", n) for w, n in zip(wanted, array.shape, strict=True)):
        raise RequestError(f"input {tensor.name} has shape {list(array.shape)}; allowed is {list(tensor.dims)}")
    return array


def read_one(pb_utils: Any, request: Any, tensor: Tensor) -> Any:
    """The only element of a [1] tensor as a Python value, or None where it is not given."""
    array = read(pb_utils, request, tensor)
    return None if array is None else array.item()


def piece_response(pb_utils: Any, piece: Piece) -> Any:
    """An InferenceResponse with every tensor of the PIECE table."""
    return pb_utils.InferenceResponse(
        [
            _tensor(pb_utils, TEXT, [piece.text.encode()]),
            _tensor(pb_utils, TOKEN_IDS, piece.token_ids),
            _tensor(pb_utils, FINISH_REASON, [piece.finish_reason.encode()]),
            _tensor(pb_utils, ERROR_CODE, [piece.error_code.encode()]),
            _tensor(pb_utils, ERROR_MESSAGE, [piece.error_message.encode()]),
            _tensor(pb_utils, PROMPT_TOKENS, [piece.prompt_tokens]),
            _tensor(pb_utils, COMPLETION_TOKENS, [piece.completion_tokens]),
        ]
    )


def error_response(pb_utils: Any, error: RequestError) -> Any:
    """An InferenceResponse that is an error: nothing of the answer was sent yet."""
    code = getattr(pb_utils.TritonError, _TRITON_CODES.get(error.code, error.code), pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(failure_text(error.code, str(error)), code))


def _tensor(pb_utils: Any, tensor: Tensor, values: Any) -> Any:
    return pb_utils.Tensor(tensor.name, np.array(values, dtype=_NUMPY[tensor.dtype]))
