"""The one TensorRT logger of a process, and what it heard.

TensorRT keeps the first logger that a process registers and ignores every later one, so exactly
one place may make it: here, in the build process, which builds one engine and ends.
"""

from __future__ import annotations

from typing import Any

from hermes_deploy.engines.layers import RECORD


class Heard:
    """`errors` and `warnings` in the order they came; `record` is the builder's layer record, or ""."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.record = ""

    def first_error(self) -> str:
        """The first error is the cause; what follows are its consequences."""
        return self.errors[0] if self.errors else "TensorRT gave no reason"


def make_logger(trt: Any, heard: Heard) -> Any:
    """A verbose `trt.ILogger` that fills `heard`. Call once per process."""
    severity = trt.ILogger.Severity

    class RecordingLogger(trt.ILogger):  # type: ignore[misc] # trt is chosen at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                heard.errors.append(message.strip())
            elif level == severity.WARNING:
                heard.warnings.append(message.strip())
            elif message.startswith(RECORD):
                heard.record += message

    return RecordingLogger()
