"""Triton model chatml_preprocess: a prompt as text to token ids. The work is in hermes_deploy.serving.preprocess."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from hermes_deploy.serving.preprocess import Preprocess


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.model = Preprocess.load(args, pb_utils)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.model.execute(requests)

    def finalize(self) -> None:
        self.model.close()
