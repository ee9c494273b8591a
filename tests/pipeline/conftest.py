"""One tiny checkpoint and one artifact of it, built by the real pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermes_deploy.pipeline import BuildRequest, build_artifact
from hermes_deploy.recipes import Recipe, load_recipe, override
from tests.fixtures.tiny import make_mistral

LENIENT = {"min_top1": 0.2}
"""The first choice of random weights is nearly a draw: rounding decides it, and that says nothing."""


def with_gate(name: str, changes: dict[str, float]) -> Recipe:
    """The recipe of that name with other thresholds."""
    recipe = load_recipe(name)
    return override(recipe, {"small_model_gate": {**recipe.thresholds(0).model_dump(), **changes}})


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stage cache of the test's own."""
    folder = tmp_path_factory.mktemp("stages") / "cache"
    monkeypatch.setenv("HERMES_DEPLOY_STAGES", str(folder))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # TensorRT has no INT4 kernels for matrices much smaller than these
    wide = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.06}
    return make_mistral(tmp_path_factory.mktemp("checkpoint") / "tiny-mistral", **wide)


@pytest.fixture(scope="session")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """int4 for the CPU and for two GPUs."""
    output = tmp_path_factory.mktemp("artifact") / "tiny"
    asked = BuildRequest(
        str(checkpoint),
        output,
        recipe="int4-awq",
        targets=("cpu", "sm86", "sm89"),
        max_context=64,
        max_slots=2,
        gate_positions=512,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hermes_deploy.pipeline.request.load_recipe", lambda name: with_gate(name, LENIENT))
        build_artifact(asked)
    return output
