"""What `chatml_preprocess` runs: chat messages, or a whole prompt as text, to the token ids of the prompt."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from hermes_deploy.chat import ChatTokenizer, Room
from hermes_deploy.protocol.tensors import INPUT_IDS, PREPROCESS, PROMPT_AS_TEXT
from hermes_deploy.repository.triton_parameters import MAX_CONTEXT, REQUEST_LOG
from hermes_deploy.serving.faults import told_to_caller
from hermes_deploy.serving.metrics import StepRefusals
from hermes_deploy.serving.prompts import read_prompt
from hermes_deploy.serving.request_log import RequestLog
from hermes_deploy.serving.tensor_io import error_response


class Preprocess:
    def __init__(self, pb_utils: Any, tokenizer: ChatTokenizer, room: Room, log: RequestLog | None = None) -> None:
        self._triton = pb_utils
        self._tokenizer = tokenizer
        self._room = room
        self._log = log or RequestLog(None)
        self._refusals = StepRefusals(pb_utils, PREPROCESS)

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

    def close(self) -> None:
        self._log.close()
        self._refusals.close()

    def _encode(self, request: Any) -> Any:
        began = time.monotonic()
        try:
            ids = read_prompt(self._triton, request, self._tokenizer, PROMPT_AS_TEXT, self._room)
        except Exception as error:  # Triton would log its words, which may quote the request
            told = told_to_caller(error)
            self._log.story(request.request_id(), "ids", began).refused(told.code)
            self._refusals.count(told.code)
            return error_response(self._triton, told)
        return self._triton.InferenceResponse([self._triton.Tensor(INPUT_IDS.name, ids)])
