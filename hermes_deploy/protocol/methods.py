"""Triton's gRPC methods by name: wire path and message types, read from the service descriptor.

The messages live in a private pool (see private_pool.py), so stubs are opened by path:

    channel.stream_stream(STREAM_INFER.path, STREAM_INFER.serialize_request, STREAM_INFER.parse_response)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hermes_deploy.protocol import grpc_service_pb2

SERVICE = "inference.GRPCInferenceService"


@dataclass(frozen=True)
class Method:
    name: str
    request: Any
    response: Any

    @property
    def path(self) -> str:
        return f"/{SERVICE}/{self.name}"

    def serialize_request(self, message: Any) -> bytes:
        data: bytes = message.SerializeToString()
        return data

    def parse_request(self, data: bytes) -> Any:
        return self.request.FromString(data)

    def serialize_response(self, message: Any) -> bytes:
        return self.serialize_request(message)

    def parse_response(self, data: bytes) -> Any:
        return self.response.FromString(data)


def _method(name: str) -> Method:
    described = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[name]
    return Method(
        name,
        getattr(grpc_service_pb2, described.input_type.name),
        getattr(grpc_service_pb2, described.output_type.name),
    )


SERVER_LIVE = _method("ServerLive")
SERVER_READY = _method("ServerReady")
SERVER_METADATA = _method("ServerMetadata")
MODEL_READY = _method("ModelReady")
STREAM_INFER = _method("ModelStreamInfer")
