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
from hermes_deploy.protocol import tensors
from hermes_deploy.protocol.failures import failure_text
from hermes_deploy.protocol.tensors import Tensor
from hermes_deploy.runtime.sampling import TokenLogprobs

_NUMPY: dict[str, Any] = {
    "BYTES": np.object_,
    "BOOL": np.bool_,
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
    """One response of the engine; fields as in protocol/tensors.py.

    `logprobs`: one for each of `token_ids`, or none. `prompt_logprobs`: one for each of `prompt_token_ids` but
    the first, or none.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str = ""
    error_code: str = ""
    error_message: str = ""
    index: int = 0
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


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


def read_text(pb_utils: Any, request: Any, tensor: Tensor) -> str | None:
    """The only text of a [1] tensor, or None where it is not given."""
    texts = read_texts(pb_utils, request, tensor)
    return texts[0] if texts else None


def read_texts(pb_utils: Any, request: Any, tensor: Tensor, most: int = 1) -> tuple[str, ...]:
    """The texts of a BYTES tensor, `most` at most; none where it is not given."""
    array = read(pb_utils, request, tensor)
    if array is not None and len(array) > most:
        raise RequestError(f"{tensor.name} has {len(array)} texts; at most {most} are taken")
    try:
        return () if array is None else tuple(text.decode() for text in array.tolist())
    except UnicodeDecodeError as error:
        raise RequestError(f"a text of input {tensor.name} is not UTF-8: {error}") from None


def piece_response(pb_utils: Any, piece: Piece) -> Any:
    """An InferenceResponse with the tensors of the PIECE table; optional ones where they say something."""
    values: list[tuple[Tensor, Any]] = [
        (tensors.TEXT, [piece.text.encode()]),
        (tensors.TOKEN_IDS, piece.token_ids),
        (tensors.FINISH_REASON, [piece.finish_reason.encode()]),
        (tensors.PROMPT_TOKENS, [piece.prompt_tokens]),
        (tensors.COMPLETION_TOKENS, [piece.completion_tokens]),
    ]
    if piece.error_code or piece.error_message:
        values.append((tensors.ERROR_CODE, [piece.error_code.encode()]))
        values.append((tensors.ERROR_MESSAGE, [piece.error_message.encode()]))
    if piece.index:
        values.append((tensors.INDEX, [piece.index]))
    if piece.cached_tokens:
        values.append((tensors.CACHED_TOKENS, [piece.cached_tokens]))
    if piece.logprobs:
        values += _logprobs(piece.logprobs, tensors.TOKEN_LOGPROBS, tensors.TOP_LOGPROB_IDS, tensors.TOP_LOGPROBS)
    if piece.prompt_token_ids:
        values.append((tensors.PROMPT_TOKEN_IDS, piece.prompt_token_ids))
        values += _logprobs(
            piece.prompt_logprobs,
            tensors.PROMPT_TOKEN_LOGPROBS,
            tensors.PROMPT_TOP_LOGPROB_IDS,
            tensors.PROMPT_TOP_LOGPROBS,
        )
    return pb_utils.InferenceResponse([_tensor(pb_utils, tensor, value) for tensor, value in values])


def _logprobs(
    logprobs: tuple[TokenLogprobs, ...], own: Tensor, top_ids: Tensor, top: Tensor
) -> list[tuple[Tensor, Any]]:
    values: list[tuple[Tensor, Any]] = [(own, [token.logprob for token in logprobs])]
    alternatives = [pair for token in logprobs for pair in token.top]
    if alternatives:
        values.append((top_ids, [token for token, _ in alternatives]))
        values.append((top, [logprob for _, logprob in alternatives]))
    return values


def error_response(pb_utils: Any, error: RequestError) -> Any:
    """An InferenceResponse that is an error: nothing of the answer was sent yet."""
    code = getattr(pb_utils.TritonError, _TRITON_CODES.get(error.code, error.code), pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(failure_text(error.code, str(error)), code))


def _tensor(pb_utils: Any, tensor: Tensor, values: Any) -> Any:
    return pb_utils.Tensor(tensor.name, np.array(values, dtype=_NUMPY[tensor.dtype]))
