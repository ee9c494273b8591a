"""Turns the serialized descriptors of the generated stubs into message classes. Needs protobuf alone.

The descriptors live in a pool of their own, not in protobuf's process-wide default one: any version
of `tritonclient` (or of Triton's own stubs) can be imported beside ours, in either order, without
"duplicate symbol" errors. Only field numbers and method paths travel on the wire, so the two are
interchangeable there. Classes come from public protobuf API, without protoc's version-locked
generated code: one file serves every protobuf from 4.25 to 7.
"""

from __future__ import annotations

import base64
from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

_POOL = DescriptorPool()


def define(module: dict[str, Any], serialized_base64: str) -> FileDescriptor:
    """Put the messages, enums and enum values of one serialized FileDescriptorProto into `module`."""
    serialized = base64.b64decode(serialized_base64)
    _POOL.AddSerializedFile(serialized)
    descriptor = _POOL.FindFileByName(descriptor_pb2.FileDescriptorProto.FromString(serialized).name)
    for name, enum in descriptor.enum_types_by_name.items():
        module[name] = EnumTypeWrapper(enum)
        module.update({value.name: value.number for value in enum.values})
    for name, message in descriptor.message_types_by_name.items():
        module[name] = message_factory.GetMessageClass(message)
        module[name].__module__ = module["__name__"]
    return descriptor
