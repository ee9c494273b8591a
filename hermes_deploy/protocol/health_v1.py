"""Messages of grpc.health.v1, the public health protocol of gRPC. Needs protobuf alone.

Source: github.com/grpc/grpc-proto, grpc/health/v1/health.proto. Two messages of one field each: they are
written down here rather than generated.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool

SERVICE = "grpc.health.v1.Health"
STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


def _define() -> tuple[Any, Any]:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="hermes_deploy/health.proto", package="grpc.health.v1")
    file.syntax = "proto3"
    request = file.message_type.add(name="HealthCheckRequest")
    request.field.add(name="service", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    response = file.message_type.add(name="HealthCheckResponse")
    kinds = response.enum_type.add(name="ServingStatus")
    for number, name in enumerate(STATUSES):
        kinds.value.add(name=name, number=number)
    kind = f".{file.package}.{response.name}.{kinds.name}"
    response.field.add(name="status", number=1, type=field.TYPE_ENUM, type_name=kind, label=field.LABEL_OPTIONAL)
    pool = DescriptorPool()  # not the process-wide one: another package may define the same names there
    pool.AddSerializedFile(file.SerializeToString())
    messages = pool.FindFileByName(file.name).message_types_by_name
    return tuple(message_factory.GetMessageClass(messages[m.name]) for m in (request, response))  # type: ignore[return-value]


HealthCheckRequest, HealthCheckResponse = _define()
