"""What `chatml_preprocess` runs: chat messages to the token ids of the rendered prompt."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from hermes_deploy.chat import ChatTokenizer, Room, parse_messages
from hermes_deploy.protocol.tensors import INPUT_IDS, MESSAGES
from hermes_deploy.repository.triton_parameters import MAX_CONTEXT, REQUEST_LOG
from hermes_deploy.serving.faults import told_to_caller
from hermes_deploy.serving.request_log import RequestLog
from hermes_deploy.serving.tensor_io import error_response, read_one


class Preprocess:
    def __init__(self, pb_utils: Any, tokenizer: ChatTokenizer, room: Room, log: RequestLog | None = None) -> None:
        self._triton = pb_utils
        self._tokenizer = tokenizer
        self._room = room
        self._log = log or RequestLog(None)

    @classmethod
    def load(cls, args: dict[str, str], pb_utils: Any) -> Preprocess:
        """From Triton's `initialize` arguments; the tokenizer's files lie beside model.py."""
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"]).get("parameters", {})
        pipe = parameters.get(REQUEST_LOG, {}).get("string_value")
        tokenizer = ChatTokenizer.from_folder(folder)
        room = Room(int(parameters[MAX_CONTEXT]["string_value"]), tokenizer.longest_token)
        return cls(pb_utils, tokenizer, room, RequestLog(pipe))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._encode(request) for request in requests]

    def _encode(self, request: Any) -> Any:
        began = time.monotonic()
        try:
            messages = parse_messages(read_one(self._triton, request, MESSAGES), self._room)
            ids = self._tokenizer.encode_chat(messages)
        except Exception as error:  # Triton would log its words, which may quote the request
            told = told_to_caller(error)
            self._log.story(request.request_id(), "ids", began).refused(told.code)
            return error_response(self._triton, told)
        tensor = self._triton.Tensor(INPUT_IDS.name, np.array(ids, dtype=np.int64))
        return self._triton.InferenceResponse([tensor])
