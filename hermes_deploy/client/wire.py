"""Requests to protobuf and responses from it, by the tensor table. Pure; no numpy.

Raw tensors are little-endian; a BYTES tensor is a run of 4-byte lengths, each followed by its bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hermes_deploy.client.errors import CallFacts, ProtocolMismatch
from hermes_deploy.client.records import Message, RawPrompt, TokenLogprob, Usage, messages_json
from hermes_deploy.client.sampling import INT32_MAX, Sampling
from hermes_deploy.protocol import tensors
from hermes_deploy.protocol.grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from hermes_deploy.protocol.tensors import Tensor

FINAL_FLAG = "triton_final_response"

_FORMATS = {"BOOL": "?", "INT32": "i", "INT64": "q", "UINT64": "Q", "FP32": "f"}
_CONTENTS = {
    "BYTES": "bytes_contents",
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
}


@dataclass(frozen=True)
class Received:
    """One data response, decoded. `finish_reason` and `error_code` are "" until they come.

    `usage.cached_tokens` is told in an answer's first piece only.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    error_code: str
    error_message: str
    usage: Usage
    index: int
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]


LEASE_MS = 60_000
"""A request ends when its key was not renewed for so long. Far more than a process may pause (a garbage collection, a
starved CPU) or an answer of a busy server may take: with 15 s a live stream was ended on overloaded cores, and what is
ended wrongly is worse than what is ended late."""


def chat_request(
    model: str,
    request_id: str,
    prompt: Sequence[Message] | RawPrompt,
    sampling: Sampling,
    timeout_s: float | None = None,
    cancel_key: str | None = None,
) -> ModelInferRequest:
    """`timeout_s` goes along, for Triton does not pass it on. `cancel_key`: it has a lease, to be renewed."""
    request = ModelInferRequest(model_name=model, id=request_id)
    values: dict[str, Sequence[Any]] = (
        {tensors.PROMPT.name: [prompt.text.encode()]}
        if isinstance(prompt, RawPrompt)
        else {tensors.MESSAGES.name: [messages_json(prompt)]}
    )
    for name in sampling.__dataclass_fields__:
        value = getattr(sampling, name)
        if value is None or value == ():
            continue
        if name == "logit_bias":
            values["logit_bias_ids"], values["logit_bias_values"] = zip(*value, strict=True)
        else:
            elements = value if isinstance(value, tuple) else (value,)
            values[name] = [e.encode() if isinstance(e, str) else e for e in elements]
    if timeout_s is not None:
        values["timeout_ms"] = [min(INT32_MAX, math.ceil(timeout_s * 1e3))]
    if cancel_key is not None:
        values[tensors.CANCEL_KEY.name] = [cancel_key.encode()]
        values[tensors.LEASE_MS.name] = [LEASE_MS]
    for tensor in (*tensors.PROMPT_AS_TEXT, *tensors.SAMPLING, *tensors.LEASE):
        if tensor.name in values:
            request.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=[len(values[tensor.name])])
            request.raw_input_contents.append(encode(tensor, values[tensor.name]))
    return request


def hold_request(hold_id: str, cancel_key: str) -> ModelInferRequest:
    """Holds the request of `cancel_key`: the engine ends that one when this one is cancelled."""
    request = ModelInferRequest(model_name=tensors.ENGINE, id=hold_id)
    request.inputs.add(name=tensors.HOLD.name, datatype=tensors.HOLD.dtype, shape=[1])
    request.raw_input_contents.append(encode(tensors.HOLD, [cancel_key.encode()]))
    return request


def renew_request(renew_id: str, cancel_keys: Sequence[str]) -> ModelInferRequest:
    """The leases of the requests of `cancel_keys` begin anew."""
    request = ModelInferRequest(model_name=tensors.ENGINE, id=renew_id)
    request.inputs.add(name=tensors.RENEW.name, datatype=tensors.RENEW.dtype, shape=[len(cancel_keys)])
    request.raw_input_contents.append(encode(tensors.RENEW, [key.encode() for key in cancel_keys]))
    return request


def encode(tensor: Tensor, values: Sequence[Any]) -> bytes:
    if tensor.dtype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return struct.pack(f"<{len(values)}{_FORMATS[tensor.dtype]}", *values)


def decode(dtype: str, data: bytes) -> list[Any]:
    """The elements of a raw tensor. ValueError when the bytes are not a whole number of them."""
    if dtype != "BYTES":
        size = struct.calcsize("<" + _FORMATS[dtype])
        if len(data) % size:
            raise ValueError(f"{len(data)} bytes are not a whole number of {dtype}")
        return list(struct.unpack(f"<{len(data) // size}{_FORMATS[dtype]}", data))
    values, at = [], 0
    while at < len(data):
        if at + 4 > len(data):
            raise ValueError("a length is cut off")
        (size,) = struct.unpack_from("<I", data, at)
        if at + 4 + size > len(data):
            raise ValueError(f"an element of {size} bytes is cut off")
        values.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return values


def is_final(response: ModelInferResponse) -> bool:
    return FINAL_FLAG in response.parameters and response.parameters[FINAL_FLAG].bool_param


def read_piece(response: ModelInferResponse, call: CallFacts) -> Received:
    """Decode one data response; outputs that the table does not know are left alone."""
    found: dict[str, list[Any]] = {}
    known = {tensor.name: tensor for tensor in tensors.PIECE}
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise _mismatch(call, f"{len(response.outputs)} outputs came with {len(raw)} contents")
    for i, output in enumerate(response.outputs):
        tensor = known.get(output.name)
        if tensor is None:
            continue
        if output.datatype != tensor.dtype:
            raise _mismatch(call, f"output {output.name!r} is {output.datatype}, and {tensor.dtype} was expected")
        try:
            found[output.name] = (
                decode(tensor.dtype, raw[i]) if raw else list(getattr(output.contents, _CONTENTS[tensor.dtype]))
            )
        except ValueError as error:
            raise _mismatch(call, f"output {output.name!r} cannot be read: {error}") from error
    missing = [tensor.name for tensor in tensors.PIECE if not tensor.optional and tensor.name not in found]
    if missing:
        raise _mismatch(call, f"the answer has no output {', '.join(missing)}")
    for tensor in tensors.PIECE:
        if tensor.dims == (1,) and len(found.get(tensor.name, "1")) != 1:
            raise _mismatch(call, f"output {tensor.name!r} has {len(found[tensor.name])} elements instead of 1")

    def one(tensor: Tensor) -> int:
        return int(found[tensor.name][0]) if tensor.name in found else 0

    def text_of(tensor: Tensor) -> str:
        try:
            text: str = found[tensor.name][0].decode() if tensor.name in found else ""
        except UnicodeDecodeError as error:
            raise _mismatch(call, f"output {tensor.name!r} is not UTF-8: {error}") from error
        return text

    def logprobs_of(ids: Sequence[int], own: Tensor, top_ids: Tensor, top: Tensor) -> tuple[TokenLogprob, ...]:
        values = found.get(own.name, [])
        likeliest, theirs = found.get(top_ids.name, []), found.get(top.name, [])
        if not values:
            return ()
        width, rest = divmod(len(likeliest), len(values))
        if len(values) != len(ids) or len(likeliest) != len(theirs) or rest:
            found_sizes = f"{len(values)}, {len(likeliest)} and {len(theirs)} elements"
            raise _mismatch(
                call, f"outputs {own.name}, {top_ids.name} and {top.name} have {found_sizes} for {len(ids)} tokens"
            )
        alternatives = list(zip(likeliest, theirs, strict=True))
        return tuple(
            TokenLogprob(token, logprob, tuple(alternatives[i * width : (i + 1) * width]))
            for i, (token, logprob) in enumerate(zip(ids, values, strict=True))
        )

    token_ids = tuple(found[tensors.TOKEN_IDS.name])
    return Received(
        text=text_of(tensors.TEXT),
        token_ids=token_ids,
        finish_reason=text_of(tensors.FINISH_REASON),
        error_code=text_of(tensors.ERROR_CODE),
        error_message=text_of(tensors.ERROR_MESSAGE),
        usage=Usage(one(tensors.PROMPT_TOKENS), one(tensors.COMPLETION_TOKENS), one(tensors.CACHED_TOKENS)),
        index=one(tensors.INDEX),
        logprobs=logprobs_of(token_ids, tensors.TOKEN_LOGPROBS, tensors.TOP_LOGPROB_IDS, tensors.TOP_LOGPROBS),
        prompt_logprobs=logprobs_of(
            found.get(tensors.PROMPT_TOKEN_IDS.name, [])[1:],
            tensors.PROMPT_TOKEN_LOGPROBS,
            tensors.PROMPT_TOP_LOGPROB_IDS,
            tensors.PROMPT_TOP_LOGPROBS,
        ),
    )


def _mismatch(call: CallFacts, what: str) -> ProtocolMismatch:
    return ProtocolMismatch(
        f"the model {call.model!r} at {call.url} does not answer as this client expects: {what}. "
        "Is it served from an artifact of `hermes-deploy build`, of the same version as this client?",
        call=call,
    )
