"""A gRPC server that speaks Triton's protocol on a real socket and answers with what a test scripts.

The same client runs against the real Triton in test_real_server.py.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc

from hermes_deploy.protocol import methods
from hermes_deploy.protocol.grpc_service_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelReadyResponse,
    ModelStreamInferResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)

Script = Callable[[ModelInferRequest, grpc.ServicerContext], Iterator[ModelStreamInferResponse]]


def text_bytes(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def piece(
    text: str | bytes = "",
    finish: str = "",
    *,
    ids: tuple[int, ...] = (7,),
    error: tuple[str, str] = ("", ""),
    usage: tuple[int, int] = (5, 1),
    final: bool = False,
    more: dict[str, tuple[str, bytes]] | None = None,
    without: str = "",
    request_id: str = "",
) -> ModelStreamInferResponse:
    """One data response as Triton sends it: raw contents, the final flag as a parameter."""
    outputs = {
        "text": ("BYTES", text_bytes(text if isinstance(text, bytes) else text.encode())),
        "token_ids": ("INT64", struct.pack(f"<{len(ids)}q", *ids)),
        "finish_reason": ("BYTES", text_bytes(finish.encode())),
        "prompt_tokens": ("INT32", struct.pack("<i", usage[0])),
        "completion_tokens": ("INT32", struct.pack("<i", usage[1])),
        **(more or {}),
    }
    if error != ("", ""):
        outputs["error_code"] = ("BYTES", text_bytes(error[0].encode()))
        outputs["error_message"] = ("BYTES", text_bytes(error[1].encode()))
    outputs.pop(without, None)
    response = ModelInferResponse(model_name="hermes_engine", id=request_id)
    for name, (datatype, raw) in outputs.items():
        response.outputs.add(name=name, datatype=datatype, shape=[len(ids) if name == "token_ids" else 1])
        response.raw_output_contents.append(raw)
    response.parameters["triton_final_response"].bool_param = final
    return ModelStreamInferResponse(infer_response=response)


def final_only(request_id: str = "") -> ModelStreamInferResponse:
    """The empty response that ends a decoupled answer."""
    response = ModelInferResponse(model_name="hermes_engine", id=request_id)
    response.parameters["triton_final_response"].bool_param = True
    return ModelStreamInferResponse(infer_response=response)


def int32(value: int) -> tuple[str, bytes]:
    """For `more` of `piece`."""
    return "INT32", struct.pack("<i", value)


def int64s(*values: int) -> tuple[str, bytes]:
    return "INT64", struct.pack(f"<{len(values)}q", *values)


def floats(*values: float) -> tuple[str, bytes]:
    return "FP32", struct.pack(f"<{len(values)}f", *values)


def inputs_of(request: ModelInferRequest) -> dict[str, tuple[str, list[int], bytes]]:
    return {
        described.name: (described.datatype, list(described.shape), raw)
        for described, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def messages_of(request: ModelInferRequest) -> Any:
    return json.loads(inputs_of(request)["messages"][2][4:])


@dataclass
class FakeTriton:
    """`script` answers each request; `requests`, `metadata` and `cancelled` say what the server saw.

    Holds and renewals (see docs/requests.md), which come on streams of their own, are only written down.
    """

    script: Script = lambda _request, _context: iter((piece("Paris.", "stop", final=True),))
    loaded: tuple[str, ...] = ("hermes", "hermes_engine")
    requests: list[ModelInferRequest] = field(default_factory=list)
    holds: list[ModelInferRequest] = field(default_factory=list)
    renewals: list[ModelInferRequest] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> FakeTriton:
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        handlers = {
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                self._stream, methods.STREAM_INFER.parse_request, methods.STREAM_INFER.serialize_response
            ),
            **{
                method.name: grpc.unary_unary_rpc_method_handler(
                    answer, method.parse_request, method.serialize_response
                )
                for method, answer in (
                    (methods.SERVER_LIVE, lambda _request, _context: ServerLiveResponse(live=True)),
                    (methods.SERVER_READY, lambda _request, _context: ServerReadyResponse(ready=True)),
                    (
                        methods.SERVER_METADATA,
                        lambda _request, _context: ServerMetadataResponse(name="triton", version="2.51.0"),
                    ),
                    (
                        methods.MODEL_READY,
                        lambda request, _context: ModelReadyResponse(ready=request.name in self.loaded),
                    ),
                )
            },
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(methods.SERVICE, handlers),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.url = f"127.0.0.1:{self.port}"
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def _stream(
        self, requests: Iterator[ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[ModelStreamInferResponse]:
        ended = threading.Event()
        context.add_callback(lambda: None if ended.is_set() else self.cancelled.set())
        self.metadata.append(dict(context.invocation_metadata()))
        for request in requests:
            kind = [tensor.name for tensor in request.inputs]
            if kind in (["hold"], ["renew"]):
                (self.holds if kind == ["hold"] else self.renewals).append(request)
                yield final_only(request.id)
                continue
            self.requests.append(request)
            yield from self.script(request, context)
        ended.set()
