"""A Triton request of either door to a `Generation` plus stop texts. Every value is checked here.

The chat door gives `messages`, the id door `input_ids`; exactly one of them. What a request does
not say comes from the artifact's sampling defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hermes_deploy.chat import ChatTokenizer, parse_messages
from hermes_deploy.errors import RequestError
from hermes_deploy.protocol.tensors import ENGINE, INPUT_IDS, MESSAGES, MODELS, SAMPLING, Tensor
from hermes_deploy.repository.engine_config import SamplingDefaults
from hermes_deploy.runtime.sampling import Sampling
from hermes_deploy.runtime.stream import Generation
from hermes_deploy.serving.tensor_io import read, read_one

_INPUTS: dict[str, Tensor] = {tensor.name: tensor for tensor in MODELS[ENGINE].inputs}


@dataclass(frozen=True)
class Asked:
    generation: Generation
    stop_texts: tuple[str, ...]


def read_request(
    pb_utils: Any, request: Any, tokenizer: ChatTokenizer, defaults: SamplingDefaults, stop_ids: frozenset[int]
) -> Asked:
    """Raises RequestError for anything that is not as the tensor table says."""
    messages = read_one(pb_utils, request, _INPUTS[MESSAGES.name])
    ids = read(pb_utils, request, _INPUTS[INPUT_IDS.name])
    if (messages is None) == (ids is None):
        found = "neither" if messages is None else "both"
        raise RequestError(f"found {found} of the inputs {MESSAGES.name} and {INPUT_IDS.name}; give exactly one")
    if ids is None:
        ids = np.array(tokenizer.encode_chat(parse_messages(messages)), dtype=np.int64)
    given = {tensor.name: read(pb_utils, request, tensor) for tensor in SAMPLING}
    stops = given.pop("stop")
    values = {name: array.item() for name, array in given.items() if array is not None}
    sampling = Sampling(
        temperature=values.get("temperature", defaults.temperature),
        top_k=values.get("top_k", defaults.top_k),
        top_p=values.get("top_p", defaults.top_p),
        seed=values.get("seed"),
    )
    # a copy: Triton's shared memory is reused once the request is answered
    generation = Generation(ids.copy(), values.get("max_tokens", defaults.max_tokens), sampling, stop_ids)
    return Asked(generation, _stop_texts([] if stops is None else stops.tolist()))


def _stop_texts(stops: list[bytes]) -> tuple[str, ...]:
    try:
        return tuple(stop.decode() for stop in stops)
    except UnicodeDecodeError as error:
        raise RequestError(f"a stop text is not UTF-8: {error}") from None
