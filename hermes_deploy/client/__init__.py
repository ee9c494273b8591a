"""The gRPC SDK: ask a served model, and read its answer while it comes.

    from hermes_deploy.client import Client

    with Client("localhost:8001") as client:
        with client.stream("Explain relativity.", max_tokens=200, timeout=30) as stream:
            for piece in stream:
                print(piece.text, end="", flush=True)
        print(stream.result().usage)

Imports grpc, protobuf and the standard library: `pip install hermes-deploy[client]` brings nothing else.
"""

from hermes_deploy.client.connection import MAX_MESSAGE_BYTES, Client, Health
from hermes_deploy.client.errors import (
    AnswerCut,
    Cancelled,
    ClientError,
    ConnectionFailed,
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NotAllowed,
    Overloaded,
    ProtocolMismatch,
    ServerFailed,
    Unavailable,
)
from hermes_deploy.client.records import (
    Answer,
    Choice,
    Door,
    Message,
    Piece,
    RawPrompt,
    Role,
    Timing,
    TokenLogprob,
    Usage,
)
from hermes_deploy.client.sampling import Sampling, SamplingOptions
from hermes_deploy.client.stream import Stream

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Answer",
    "AnswerCut",
    "Cancelled",
    "Choice",
    "Client",
    "ClientError",
    "ConnectionFailed",
    "ContextTooLong",
    "DeadlineExceeded",
    "Door",
    "Health",
    "InvalidRequest",
    "Message",
    "ModelNotFound",
    "NotAllowed",
    "Overloaded",
    "Piece",
    "ProtocolMismatch",
    "RawPrompt",
    "Role",
    "Sampling",
    "SamplingOptions",
    "ServerFailed",
    "Stream",
    "Timing",
    "TokenLogprob",
    "Unavailable",
    "Usage",
]
