"""config.pbtxt is complete, typed, and the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from hermes_deploy.errors import ArtifactError
from hermes_deploy.protocol import model_config_pb2 as pb
from hermes_deploy.protocol.tensors import BY_KEY, ENGINE, ENSEMBLE, MODELS, POSTPROCESS, PREPROCESS, PROMPT_AS_TEXT
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


DATA_TYPES = {
    "BYTES": pb.TYPE_STRING,
    "BOOL": pb.TYPE_BOOL,
    "INT32": pb.TYPE_INT32,
    "INT64": pb.TYPE_INT64,
    "UINT64": pb.TYPE_UINT64,
    "FP32": pb.TYPE_FP32,
}


def checked_in(model: str) -> Any:
    return text_format.Parse((CHECKED_IN / model / "config.pbtxt").read_text(encoding="utf-8"), pb.ModelConfig())


def test_the_table_has_every_model_that_is_checked_in() -> None:
    assert set(MODELS) == {path.parent.name for path in CHECKED_IN.glob("*/config.pbtxt")}


@pytest.mark.parametrize("model", MODELS)
def test_a_config_file_has_the_names_types_shapes_and_options_of_the_table(model: str) -> None:
    config, table = checked_in(model), MODELS[model]
    inputs = [(i.name, i.data_type, tuple(i.dims), i.optional) for i in config.input]
    assert inputs == [(t.name, DATA_TYPES[t.dtype], t.dims, t.optional) for t in table.inputs]
    outputs = [(o.name, o.data_type, tuple(o.dims)) for o in config.output]
    assert outputs == [(t.name, DATA_TYPES[t.dtype], t.dims) for t in table.outputs]
    assert (config.name, config.max_batch_size) == (model, 0)


def test_only_the_engine_is_decoupled_and_each_python_model_runs_once() -> None:
    configs = model_configs(demo_config())
    assert [name for name, c in configs.items() if c.model_transaction_policy.decoupled] == [ENGINE]
    for name in (PREPROCESS, ENGINE, POSTPROCESS):
        assert [group.count for group in configs[name].instance_group] == [1]
        assert not configs[name].HasField("dynamic_batching")


def test_the_ensembles_steps_are_the_three_models_in_their_order() -> None:
    steps = checked_in(ENSEMBLE).ensemble_scheduling.step
    assert [(step.model_name, step.model_version) for step in steps] == [
        (PREPROCESS, -1),
        (ENGINE, -1),
        (POSTPROCESS, -1),
    ]


def test_the_ensemble_hands_every_tensor_on_to_one_of_the_same_type_and_to_where_it_belongs() -> None:
    """Whatever a caller gives, a step takes; whatever a step takes, somebody gives; each under its own name."""
    ensemble = checked_in(ENSEMBLE)
    flowing = {i.name: (i.data_type, tuple(i.dims)) for i in ensemble.input}
    taken: set[str] = set()
    for step in ensemble.ensemble_scheduling.step:
        model = checked_in(step.model_name)
        inputs = {i.name: (i.data_type, tuple(i.dims)) for i in model.input}
        outputs = {o.name: (o.data_type, tuple(o.dims)) for o in model.output}
        for own, name in step.input_map.items():
            assert flowing[name] == inputs[own], f"{step.model_name}: {own}"
            assert name.removeprefix("raw_") == own
        taken |= set(step.input_map.values())
        assert set(step.output_map) == set(outputs), "a step's output is lost"
        for own, name in step.output_map.items():
            assert name.removeprefix("raw_") == own
            flowing[name] = outputs[own]
    asked = {i.name for i in ensemble.input}
    answered = {o.name: (o.data_type, tuple(o.dims)) for o in ensemble.output}
    assert asked <= taken, "an input of the ensemble leads nowhere"
    assert {name: flowing[name] for name in answered} == answered
    assert set(flowing) - taken == set(answered), "something that a step gives leads nowhere"


def test_the_engine_gets_from_the_ensemble_all_that_it_takes_itself_but_other_forms_and_calls_by_key() -> None:
    _, engine, _ = checked_in(ENSEMBLE).ensemble_scheduling.step
    direct = {i.name for i in checked_in(ENGINE).input}
    apart = {tensor.name for tensor in (*PROMPT_AS_TEXT, *BY_KEY)}
    assert set(engine.input_map) == direct - apart


def test_lowering_a_limit_changes_nothing_else() -> None:
    text = config_texts(demo_config())[ENGINE]
    lowered = with_parameters(text, max_slots="2")
    changed = [(a, b) for a, b in zip(text.splitlines(), lowered.splitlines(), strict=True) if a != b]
    assert changed == [('    string_value: "8"', '    string_value: "2"')]


def test_a_damaged_config_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"config\.pbtxt cannot be read"):
        with_parameters("name: hermes {", max_slots="2")
