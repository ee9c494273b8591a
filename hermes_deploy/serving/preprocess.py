"""What `chatml_preprocess` runs: chat messages to the token ids of the rendered prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hermes_deploy.chat import ChatTokenizer, parse_messages
from hermes_deploy.errors import RequestError
from hermes_deploy.protocol.tensors import INPUT_IDS, MESSAGES
from hermes_deploy.serving.tensor_io import error_response, read_one


class Preprocess:
    def __init__(self, pb_utils: Any, tokenizer: ChatTokenizer) -> None:
        self._triton = pb_utils
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, args: dict[str, str], pb_utils: Any) -> Preprocess:
        """From Triton's `initialize` arguments; the tokenizer's files lie beside model.py."""
        folder = Path(args["model_repository"]) / args["model_version"]
        return cls(pb_utils, ChatTokenizer.from_folder(folder))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._encode(request) for request in requests]

    def _encode(self, request: Any) -> Any:
        try:
            messages = parse_messages(read_one(self._triton, request, MESSAGES))
            ids = self._tokenizer.encode_chat(messages)
        except RequestError as error:
            return error_response(self._triton, error)
        tensor = self._triton.Tensor(INPUT_IDS.name, np.array(ids, dtype=np.int64))
        return self._triton.InferenceResponse([tensor])
