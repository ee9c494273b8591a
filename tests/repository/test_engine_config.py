"""engine_config.json comes back as it was written, and anything else is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from hermes_deploy.errors import ArtifactError
from hermes_deploy.repository.demo import demo_config
from hermes_deploy.repository.engine_config import (
    ENGINE_CONFIG,
    EngineTarget,
    SamplingDefaults,
    read_engine_config,
    sampling_defaults,
    write_engine_config,
)


def test_it_reads_back_what_was_written(tmp_path: Path) -> None:
    write_engine_config(tmp_path, demo_config())
    assert read_engine_config(tmp_path) == demo_config()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"max_slots": "many"}, "max_slots"),
        ({"schema_version": 2}, "schema_version"),
        ({"targets": []}, "targets"),
    ],
)
def test_a_damaged_file_is_refused_and_the_place_is_named(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    data = {**json.loads(demo_config().model_dump_json()), **change}
    (tmp_path / ENGINE_CONFIG).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=message):
        read_engine_config(tmp_path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        read_engine_config(tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/model.onnx", "cpu//model.onnx", "./model.onnx"])
def test_an_engine_file_cannot_lie_outside(path: str) -> None:
    with pytest.raises(ValidationError, match="not a plain relative path"):
        EngineTarget(name="cpu", engine="onnxruntime", precision="fp32", model=path, files=(path,))


def test_an_unknown_target_is_refused_with_those_that_are_there() -> None:
    with pytest.raises(ArtifactError, match="no engine for target 'sm89'; it has: cpu"):
        demo_config().target("sm89")


def test_the_checkpoints_own_sampling_wins_over_its_familys() -> None:
    assert sampling_defaults({}, "chatml") == SamplingDefaults(temperature=0.8, repetition_penalty=1.1)
    own = sampling_defaults({"temperature": 0.2, "top_k": 40, "min_p": 0.05, "typical_p": 0.9}, "chatml")
    assert own == SamplingDefaults(temperature=0.2, top_k=40, min_p=0.05, typical_p=0.9, repetition_penalty=1.1)


def test_a_checkpoint_that_says_greedy_gets_nothing_of_its_family() -> None:
    assert sampling_defaults({"temperature": 0.0}, "zephyr") == SamplingDefaults()


@pytest.mark.parametrize(
    ("family", "published"),
    [
        ("smollm2", {"temperature": 0.2, "top_p": 0.9}),
        ("chatml", {"temperature": 0.8, "repetition_penalty": 1.1}),
        ("mistral-nemo", {"temperature": 0.3}),
        ("mistral-instruct", {"temperature": 0.7}),
        ("zephyr", {"temperature": 0.7, "top_k": 50, "top_p": 0.95}),
    ],
)
def test_each_family_has_what_its_model_card_recommends(family: str, published: dict[str, float]) -> None:
    assert sampling_defaults({}, family) == SamplingDefaults.model_validate(published)


def test_an_artifact_of_before_has_the_new_defaults_off(tmp_path: Path) -> None:
    data = json.loads(demo_config().model_dump_json())
    for name in ("min_p", "typical_p", "repetition_penalty"):
        del data["sampling"][name]
    (tmp_path / ENGINE_CONFIG).write_text(json.dumps(data))
    sampling = read_engine_config(tmp_path).sampling
    assert (sampling.min_p, sampling.typical_p, sampling.repetition_penalty) == (0.0, 1.0, 1.0)
