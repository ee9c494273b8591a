"""Triton model chatml_postprocess: renders released spans. The work is in hermes_deploy.serving.postprocess."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from hermes_deploy.serving.postprocess import Postprocess


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002 - Triton's signature
        self.model = Postprocess(pb_utils)

    def execute(self, requests: list[Any]) -> list[Any]:
        return self.model.execute(requests)
