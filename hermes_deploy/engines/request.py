"""What the build process is asked, and what it answers: JSON lines over a pipe.

The parent writes one `BuildRequest`; the child writes progress lines, then one `failed` or `done`.
Standard library and pydantic only.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from hermes_deploy.engines.sidecar import EngineSidecar, ProfileEntry
from hermes_deploy.targets import Flavour, Precision


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BuildRequest(_Frozen):
    """`parent`: process id that must be alive; the build dies with it. `kept`: names of the linears that
    stay in the activation dtype against `precision`."""

    parent: int
    onnx: str
    flavour: Flavour
    targets: list[str]
    precision: Precision
    head_precision: str
    kept: list[str]
    profiles: list[ProfileEntry]


class Answer(_Frozen):
    kind: Literal["progress", "failed", "done"]
    phase: str = ""
    step: int = 0
    steps: int = 0
    message: str = ""
    sidecar: EngineSidecar | None = None
