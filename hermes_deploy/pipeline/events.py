"""What a running build tells: a stage began, got on, or ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Tell = Callable[[str], None]
"""Called inside a stage with how far it is, in words ("12 of 271 tensors")."""


@dataclass(frozen=True)
class StageEvent:
    """`detail`: what the stage works on; for "progress", how far it is. `seconds`: wall time, at the end only."""

    stage: str
    kind: Literal["begin", "progress", "end"]
    detail: str = ""
    seconds: float = 0.0
