"""The build process: `python -m hermes_deploy.engines.process REQUEST_FD ANSWER_FD PLAN_FD`.

Started by `build.py`, never by hand. Reads a BuildRequest, writes Answers and the plan. The kernel
ends it together with its parent, so a killed build leaves no compiler behind.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading

from hermes_deploy.engines.compile import compile_engine
from hermes_deploy.engines.request import Answer, BuildRequest
from hermes_deploy.errors import EngineError

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Linux ends this process when the thread that started it ends, by whatever way (prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # it may have ended before the line above
    if os.getppid() != parent:
        raise SystemExit(1)


def main(request_fd: int, answer_fd: int, plan_fd: int) -> None:
    with os.fdopen(request_fd, "rb") as stream:
        request = BuildRequest.model_validate(json.loads(stream.read()))
    die_with(request.parent)
    lock = threading.Lock()
    with os.fdopen(answer_fd, "w", encoding="utf-8") as answers, os.fdopen(plan_fd, "wb") as plan:

        def answer(value: Answer) -> None:
            # TensorRT reports progress from threads of its own
            with lock:
                answers.write(value.model_dump_json() + "\n")
                answers.flush()

        def report(phase: str, step: int, steps: int) -> None:
            answer(Answer(kind="progress", phase=phase, step=step, steps=steps))

        try:
            sidecar = compile_engine(request, plan, report)
        except EngineError as error:
            answer(Answer(kind="failed", message=str(error)))
        else:
            answer(Answer(kind="done", sidecar=sidecar))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
