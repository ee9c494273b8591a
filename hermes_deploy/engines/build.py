"""`build_engine`: starts the build process, follows it, and lets the engine appear by rename.

TensorRT runs in a process of its own because it keeps one logger per process, holds gigabytes that
a finished build must give back, and may end a process with a signal. The child dies with the thread
that called `build_engine`; whatever way the build ends, only a proved engine is ever called
`engine.plan`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hermes_deploy.engines.availability import flavour_for
from hermes_deploy.engines.profiles import Profile
from hermes_deploy.engines.request import Answer, BuildRequest
from hermes_deploy.engines.sidecar import PLAN, SIDECAR, EngineSidecar, ProfileEntry, SizeRange, write_sidecar
from hermes_deploy.errors import EngineError
from hermes_deploy.machine import gpus
from hermes_deploy.recipes import Recipe, check_target
from hermes_deploy.targets import Target, target

PARTIAL = f"{PLAN}.partial"


@dataclass(frozen=True)
class EngineProgress:
    """`step` of `steps` of one phase of the builder, in its own words. Phases nest and repeat."""

    phase: str
    step: int
    steps: int


@dataclass(frozen=True)
class EngineFiles:
    plan: Path
    sidecar_path: Path
    sidecar: EngineSidecar


def build_engine(
    onnx_path: Path,
    targets: Sequence[Target],
    out_dir: Path,
    *,
    recipe: Recipe,
    profiles: Sequence[Profile],
    kept: Collection[str] = (),
    progress: Callable[[EngineProgress], None] | None = None,
) -> EngineFiles:
    """Builds one engine for all of `targets` into `out_dir`: engine.plan and engine.json.

    `onnx_path`: portable dialect, weights in it or beside it. `recipe` says which precision the
    linears and the head have in the graph; the build proves that the engine's kernels have it too.
    `kept`: the linears that the preparation kept in the activation dtype, as `QuantizationReport.kept`.
    An engine that `out_dir` already holds is removed first.

    Raises TargetError when the targets cannot be had here, EngineError with TensorRT's own first
    words when the build fails. Nothing of a failed build stays.
    """
    if not onnx_path.is_file():
        raise EngineError(f"there is no graph to build from: {onnx_path} is not a file")
    if not profiles:
        raise EngineError("an engine needs at least one optimization profile, see serving_profiles")
    for wanted in targets:
        check_target(recipe, wanted)
    request = BuildRequest(
        parent=os.getpid(),
        onnx=str(onnx_path.absolute()),
        flavour=flavour_for(targets),
        targets=[t.name for t in targets],
        precision=recipe.linear,
        head_precision=recipe.head_on(targets[0]),
        kept=sorted(kept),
        profiles=[
            ProfileEntry(
                name=p.name,
                dimensions={key: SizeRange(min=r.min, opt=r.opt, max=r.max) for key, r in p.dimensions.items()},
            )
            for p in profiles
        ],
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    with _claimed(out_dir) as plan_fd:
        sidecar = _follow(request, plan_fd, progress)
        # the sidecar first: a plan without one looks unfinished, and is
        path = write_sidecar(out_dir, sidecar)
        (out_dir / PARTIAL).rename(out_dir / PLAN)
    return EngineFiles(out_dir / PLAN, path, sidecar)


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[int]:
    """An empty, locked file for the plan under its unfinished name; on failure nothing stays in `folder`."""
    partial = folder / PARTIAL
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.stat(partial).st_ino == os.fstat(descriptor).st_ino  # noqa: PTH116
        except OSError:
            ours = False
        if not ours:
            raise EngineError(f"another build is writing an engine into {folder}; give each build a folder of its own")
        os.ftruncate(descriptor, 0)
        try:
            for name in (PLAN, SIDECAR):
                (folder / name).unlink(missing_ok=True)
            yield descriptor
        except BaseException:
            for name in (PLAN, SIDECAR, f"{SIDECAR}.partial", PARTIAL):
                (folder / name).unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


def _follow(request: BuildRequest, plan_fd: int, progress: Callable[[EngineProgress], None] | None) -> EngineSidecar:
    """Runs the build process to its end. Kills it when this thread leaves early, by whatever exception."""
    request_read, request_write = os.pipe()
    answer_read, answer_write = os.pipe()
    given = (request_read, answer_write, plan_fd)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if request.flavour == "tensorrt" and "CUDA_VISIBLE_DEVICES" not in environment:
        # full TensorRT builds for the first GPU it sees: show it the one that was asked for
        capabilities = [gpu.compute_capability for gpu in gpus()]
        wanted = capabilities.index(target(request.targets[0]).compute_capability or (0, 0))
        environment |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(wanted)}
    with tempfile.TemporaryFile() as words, os.fdopen(answer_read, encoding="utf-8") as answers:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "hermes_deploy.engines.process", *(str(fd) for fd in given)],
            pass_fds=given,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=environment,
            # Ctrl-C goes to the parent alone, which then ends the child
            process_group=0,
        )
        try:
            os.close(request_read)
            os.close(answer_write)
            # a child that died at once says why below
            with contextlib.suppress(BrokenPipeError), os.fdopen(request_write, "w", encoding="utf-8") as stream:
                stream.write(request.model_dump_json())
            phase = "start"
            for line in answers:
                answer = Answer.model_validate_json(line)
                if answer.kind == "failed":
                    raise EngineError(answer.message)
                if answer.kind == "done" and answer.sidecar is not None:
                    return answer.sidecar
                phase = answer.phase
                if progress:
                    progress(EngineProgress(answer.phase, answer.step, answer.steps))
            child.wait()
            words.seek(0)
            raise EngineError(_died(request.flavour, child.returncode, phase, words.read()))
        finally:
            child.kill()
            child.wait()


def _died(flavour: str, code: int, phase: str, words: bytes) -> str:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    hint = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
    lines = [line for line in words.decode("utf-8", "replace").splitlines() if line.strip()]
    last = f". Its last words: {lines[-1].strip()}" if lines else ""
    return f"the {flavour} build process {how}{hint} (phase: {phase}){last}"
