"""What a running build tells: a stage began, got on, or ended; or something that a person should know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Tell = Callable[[int, int, str], None]
"""Called inside a stage with how far it is: done, total, unit ("tensors", "positions", a TensorRT phase)."""


@dataclass(frozen=True)
class StageEvent:
    """`detail`: what the stage works on; for "note", the words. `done` of `total` `unit`: at "progress" only.

    `seconds`: wall time, at "end" only; `reused` there says that the cache had the result.
    """

    stage: str
    kind: Literal["begin", "progress", "note", "end"]
    detail: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    seconds: float = 0.0
    reused: bool = False


OnEvent = Callable[[StageEvent], None]
