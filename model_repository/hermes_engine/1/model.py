"""Triton model hermes_engine: both doors to the one engine. The work is in hermes_deploy.serving.engine_model."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from hermes_deploy.serving.engine_model import EngineModel


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.model = EngineModel.load(args, pb_utils)

    def execute(self, requests: list[Any]) -> None:
        self.model.execute(requests)

    def finalize(self) -> None:
        self.model.close()
