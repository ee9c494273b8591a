"""What a running build tells: a stage began or ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageEvent:
    """`seconds` is None when the stage begins, its wall time when it ends."""

    stage: str
    detail: str = ""
    seconds: float | None = None
