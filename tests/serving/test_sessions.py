"""Each target opens the session of its engine, or says why this machine cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hermes_deploy.errors import ArtifactError, ServeError
from hermes_deploy.machine import runnable
from hermes_deploy.protocol.tensors import ENGINE
from hermes_deploy.repository.engine_config import EngineConfig, EngineTarget, read_engine_config
from hermes_deploy.runtime.sessions.ort_cpu import OrtCpuSession
from hermes_deploy.serving.sessions import open_session
from hermes_deploy.targets import TARGETS
from tests.serving.artifact import MAX_CONTEXT, MAX_SLOTS


@pytest.fixture
def folder(artifact: Path) -> Path:
    return artifact / ENGINE / "1"


def with_target(config: EngineConfig, **changes: object) -> EngineConfig:
    entry = EngineTarget.model_validate({**config.targets[0].model_dump(), **changes})
    return config.model_copy(update={"targets": (entry,)})


def test_the_cpu_target_opens_the_cpu_session(folder: Path) -> None:
    session = open_session(read_engine_config(folder), "cpu", folder, slots=MAX_SLOTS, max_context=MAX_CONTEXT)
    assert isinstance(session, OrtCpuSession)
    assert session.prefill(0, np.array([1, 2, 3]), 0).shape == (1, session.vocab_size)
    session.close()


def test_limits_beyond_the_build_are_refused(folder: Path) -> None:
    with pytest.raises(ServeError, match="max_slots"):
        open_session(read_engine_config(folder), "cpu", folder, slots=MAX_SLOTS + 1, max_context=MAX_CONTEXT)


@pytest.mark.skipif(not runnable(TARGETS["cuda"]), reason="the cuda target runs here")
def test_the_cuda_target_never_runs_on_the_cpu_instead(folder: Path) -> None:
    config = with_target(read_engine_config(folder), name="cuda")
    with pytest.raises(ServeError, match="CUDA"):
        open_session(config, "cuda", folder, slots=1, max_context=MAX_CONTEXT)


def test_a_tensorrt_target_is_opened_by_its_sidecar(folder: Path, tmp_path: Path) -> None:
    config = with_target(
        read_engine_config(folder), name="sm89", engine="tensorrt", model="e/engine.plan", files=["e/engine.plan"]
    )
    with pytest.raises(ArtifactError, match=r"engine\.json"):
        open_session(config, "sm89", tmp_path, slots=1, max_context=MAX_CONTEXT)
