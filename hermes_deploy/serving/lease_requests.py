"""What a Triton request says of keys: its own `cancel_key` and lease, or that it is a call about another's key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hermes_deploy.errors import RequestError
from hermes_deploy.protocol.tensors import BY_KEY, CANCEL_KEY, ENGINE, LEASE_MS, MODELS, RENEW, Tensor
from hermes_deploy.serving.leases import Lease
from hermes_deploy.serving.tensor_io import read_one, read_text, read_texts

SHORTEST_KEY, LONGEST_KEY = 16, 128
"""Characters. 16 of a base64 alphabet hold 96 bits: nobody ends another's request by guessing."""
LONGEST_LEASE_MS = 3_600_000
MOST_RENEWED = 1024
"""Keys in one call."""


@dataclass(frozen=True)
class KeyCall:
    """A call about the requests of `keys`: one, but for "renew"."""

    do: Literal["hold", "cancel", "renew"]
    keys: tuple[str, ...]


def is_key_call(pb_utils: Any, request: Any) -> bool:
    """Whether `request` speaks of others, and wants no answer of its own."""
    return any(_is_given(pb_utils, request, tensor) for tensor in BY_KEY)


def read_key_call(pb_utils: Any, request: Any) -> KeyCall:
    """Of a request that is one. Raises RequestError for one that wants an answer as well, or has no good key."""
    tensor = next(t for t in BY_KEY if _is_given(pb_utils, request, t))
    others = [t.name for t in MODELS[ENGINE].inputs if t is not tensor and _is_given(pb_utils, request, t)]
    if others:
        raise RequestError(f"found {tensor.name} with {', '.join(others)}; it is sent alone")
    keys = read_texts(pb_utils, request, tensor, MOST_RENEWED if tensor is RENEW else 1)
    if not keys:
        raise RequestError(f"{tensor.name} has no key; give the cancel_key of a request")
    do: Any = tensor.name  # one of the three: they are named after what they do
    return KeyCall(do, tuple(_checked(tensor, key) for key in keys))


def read_lease(pb_utils: Any, request: Any) -> Lease | None:
    """None where the request has no key."""
    key = read_text(pb_utils, request, CANCEL_KEY)
    lease_ms = read_one(pb_utils, request, LEASE_MS)
    if key is None:
        if lease_ms is not None:
            raise RequestError("found lease_ms without cancel_key; give the key by which the request will be held")
        return None
    if lease_ms is not None and not 1 <= lease_ms <= LONGEST_LEASE_MS:
        raise RequestError(f"lease_ms is {lease_ms}; allowed is 1 to {LONGEST_LEASE_MS}")
    return Lease(_checked(CANCEL_KEY, key), None if lease_ms is None else lease_ms / 1e3)


def _checked(tensor: Tensor, key: str) -> str:
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY:
        raise RequestError(
            f"{tensor.name} has {len(key)} characters; allowed are {SHORTEST_KEY} to {LONGEST_KEY}, chosen at random"
        )
    return key


def _is_given(pb_utils: Any, request: Any, tensor: Tensor) -> bool:
    return pb_utils.get_input_tensor_by_name(request, tensor.name) is not None
