"""config.pbtxt is complete, typed, and the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format

from hermes_deploy.errors import ArtifactError
from hermes_deploy.protocol import model_config_pb2 as pb
from hermes_deploy.protocol.tensors import ENGINE, ENSEMBLE, LEASE, MODELS, POSTPROCESS, PREPROCESS, SAMPLING
from hermes_deploy.repository.assemble import write_models
from hermes_deploy.repository.demo import demo_config
from hermes_deploy.repository.triton_config import config_texts, model_configs, with_parameters

CHECKED_IN = Path(__file__).parents[2] / "model_repository"


def contents(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in files}


def test_the_checked_in_model_repository_is_what_the_demo_build_writes(tmp_path: Path) -> None:
    write_models(tmp_path, demo_config())
    assert contents(CHECKED_IN) == contents(tmp_path), "run: python -m hermes_deploy.repository.demo model_repository"


def test_every_shim_stays_thin() -> None:
    for path in CHECKED_IN.rglob("model.py"):
        assert len(path.read_text().splitlines()) < 60


def test_a_text_parses_back_to_the_message_it_was_made_from() -> None:
    for name, message in model_configs(demo_config()).items():
        assert text_format.Parse(config_texts(demo_config())[name], pb.ModelConfig()) == message


def test_every_model_has_the_tensors_of_the_table() -> None:
    for name, message in model_configs(demo_config()).items():
        assert [(i.name, i.optional) for i in message.input] == [(t.name, t.optional) for t in MODELS[name].inputs]
        assert [o.name for o in message.output] == [t.name for t in MODELS[name].outputs]
        assert message.max_batch_size == 0


def test_only_the_engine_is_decoupled_and_each_python_model_runs_once() -> None:
    configs = model_configs(demo_config())
    assert [name for name, c in configs.items() if c.model_transaction_policy.decoupled] == [ENGINE]
    for name in (PREPROCESS, ENGINE, POSTPROCESS):
        assert [group.count for group in configs[name].instance_group] == [1]
        assert not configs[name].HasField("dynamic_batching")


def test_the_ensemble_chains_the_three_models_and_hands_the_sampling_inputs_on() -> None:
    ensemble = model_configs(demo_config())[ENSEMBLE]
    steps = ensemble.ensemble_scheduling.step
    assert [step.model_name for step in steps] == [PREPROCESS, ENGINE, POSTPROCESS]
    assert {tensor.name for tensor in (*SAMPLING, *LEASE)} < set(steps[1].input_map)
    assert set(steps[2].output_map.values()) == {o.name for o in ensemble.output}


def test_lowering_a_limit_changes_nothing_else() -> None:
    text = config_texts(demo_config())[ENGINE]
    lowered = with_parameters(text, max_slots="2")
    changed = [(a, b) for a, b in zip(text.splitlines(), lowered.splitlines(), strict=True) if a != b]
    assert changed == [('    string_value: "8"', '    string_value: "2"')]


def test_a_damaged_config_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"config\.pbtxt cannot be read"):
        with_parameters("name: hermes {", max_slots="2")
