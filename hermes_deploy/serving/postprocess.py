"""What `chatml_postprocess` runs: renders the span of text that the engine released. No state.

The engine owns the detokenizer, stop text and hold-back, so a piece is passed on as it came: what
is optional in it may be missing.
"""

from __future__ import annotations

from typing import Any

from hermes_deploy.protocol.tensors import PIECE


class Postprocess:
    def __init__(self, pb_utils: Any) -> None:
        self._triton = pb_utils

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._render(request) for request in requests]

    def _render(self, request: Any) -> Any:
        given = (self._triton.get_input_tensor_by_name(request, tensor.name) for tensor in PIECE)
        return self._triton.InferenceResponse(
            [self._triton.Tensor(t.name(), t.as_numpy()) for t in given if t is not None]
        )
