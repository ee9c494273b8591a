"""The prompt of a request to token ids, in whichever of its forms it came. Both doors read it here.

`messages` are rendered, and nothing in them is a control token. `prompt` (the rendered text) and `input_ids` are taken
as they are: who sends them vouches for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.chat import ChatTokenizer, Room, parse_messages, parse_prompt
from hermes_deploy.errors import RequestError
from hermes_deploy.protocol.tensors import MESSAGES, PROMPT, Tensor
from hermes_deploy.runtime.admission import check_length
from hermes_deploy.serving.tensor_io import read


def read_prompt(
    pb_utils: Any, request: Any, tokenizer: ChatTokenizer, forms: tuple[Tensor, ...], room: Room
) -> npt.NDArray[np.int64]:
    """`forms`: the inputs of which exactly one is given; `room`: what the context holds. Raises RequestError."""
    arrays = {form.name: array for form in forms if (array := read(pb_utils, request, form)) is not None}
    if len(arrays) != 1:
        *others, last = (form.name for form in forms)
        found = " and ".join(arrays) or "none"
        raise RequestError(f"found {found} of the inputs {', '.join(others)} and {last}; give exactly one")
    ((name, array),) = arrays.items()
    if name == MESSAGES.name:
        return np.array(tokenizer.encode_chat(parse_messages(array.item(), room)), dtype=np.int64)
    if name == PROMPT.name:
        return np.array(tokenizer.encode_prompt(parse_prompt(array.item(), room)), dtype=np.int64)
    check_length(len(array), room.max_context)
    # a copy: Triton's shared memory is reused once the request is answered
    return array.copy()
