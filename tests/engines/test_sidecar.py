"""The sidecar says what the plan takes and gives, and knows the plan that it belongs to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hermes_deploy.engines import PLAN, SIDECAR, EngineFiles, read_sidecar, write_sidecar
from hermes_deploy.engines.sidecar import version_problem
from hermes_deploy.errors import ArtifactError
from tests.engines.conftest import build_decoder
from tests.engines.decoder_onnx import Decoder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> EngineFiles:
    return build_decoder(tmp_path_factory.mktemp("built"), Decoder("int4", layers=1), ("sm86", "sm89"))


@pytest.fixture
def engine(built: EngineFiles, tmp_path: Path) -> EngineFiles:
    """A copy that a test may damage."""
    folder = shutil.copytree(built.plan.parent, tmp_path / "engine")
    return EngineFiles(folder / PLAN, folder / SIDECAR, built.sidecar)


def test_it_tells_inputs_outputs_profiles_and_versions_without_a_gpu(engine: EngineFiles) -> None:
    sidecar = read_sidecar(engine.plan.parent)
    assert sidecar == engine.sidecar
    shapes = {entry.name: (entry.dtype, entry.shape) for entry in (*sidecar.inputs, *sidecar.outputs)}
    assert shapes["input_ids"] == ("int64", ["batch", "seq"])
    assert shapes["past_key_0"] == ("fp16", ["batch", 2, 128, 64])
    assert shapes["logits"] == ("fp32", ["batch", "rows", 320])
    assert shapes["present_value_0"] == ("fp16", ["batch", 2, 128, 64])
    sizes = {p.name: {k: (r.min, r.opt, r.max) for k, r in p.dimensions.items()} for p in sidecar.profiles}
    assert sizes == {
        "prefill": {"batch": (1, 1, 1), "seq": (1, 32, 32), "rows": (1, 1, 1)},
        "decode": {"batch": (1, 4, 4), "seq": (1, 1, 1), "rows": (1, 1, 1)},
    }
    assert (sidecar.flavour, sidecar.precision, sidecar.head_precision) == ("tensorrt_rtx", "int4", "fp16")
    assert sidecar.compute_capabilities == ["8.6", "8.9"]
    assert sidecar.version.startswith("1.")
    assert sidecar.plan.size == engine.plan.stat().st_size


def test_it_says_which_caches_must_share_an_address(engine: EngineFiles) -> None:
    assert engine.sidecar.aliases == {"present_key_0": "past_key_0", "present_value_0": "past_value_0"}


def test_an_unknown_key_is_refused(engine: EngineFiles) -> None:
    data = json.loads(engine.sidecar_path.read_text())
    engine.sidecar_path.write_text(json.dumps({**data, "colour": "blue"}))
    with pytest.raises(ArtifactError, match="colour"):
        read_sidecar(engine.plan.parent)


def test_a_sidecar_of_another_schema_is_refused(engine: EngineFiles) -> None:
    data = json.loads(engine.sidecar_path.read_text())
    engine.sidecar_path.write_text(json.dumps({**data, "schema_version": 99}))
    with pytest.raises(ArtifactError, match="schema_version 99"):
        read_sidecar(engine.plan.parent)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}"])
def test_a_damaged_sidecar_is_refused(engine: EngineFiles, text: str) -> None:
    engine.sidecar_path.write_text(text)
    with pytest.raises(ArtifactError, match=r"engine\.json"):
        read_sidecar(engine.plan.parent)


def test_one_flipped_byte_in_the_plan_is_found(engine: EngineFiles) -> None:
    data = bytearray(engine.plan.read_bytes())
    data[len(data) // 2] ^= 1
    engine.plan.write_bytes(data)
    with pytest.raises(ArtifactError, match="sha256 differs"):
        read_sidecar(engine.plan.parent)
    # the quick look is for callers whose manifest has hashed the file already
    assert read_sidecar(engine.plan.parent, verify=False) == engine.sidecar


def test_a_truncated_plan_is_found_without_reading_it(engine: EngineFiles) -> None:
    engine.plan.write_bytes(engine.plan.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="its sidecar says"):
        read_sidecar(engine.plan.parent, verify=False)


def test_the_sidecar_of_another_engine_is_refused(engine: EngineFiles, tmp_path: Path) -> None:
    other = build_decoder(tmp_path / "other", Decoder("int4", layers=1, block_size=32), ("sm86",))
    shutil.copy(other.sidecar_path, engine.sidecar_path)
    with pytest.raises(ArtifactError, match="sidecar"):
        read_sidecar(engine.plan.parent)


def test_half_an_engine_is_no_engine(engine: EngineFiles, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    shutil.copy(engine.plan, folder / PLAN)
    with pytest.raises(ArtifactError, match="holds no finished engine"):
        read_sidecar(folder)
    (folder / PLAN).unlink()
    write_sidecar(folder, engine.sidecar)
    with pytest.raises(ArtifactError, match="is not there"):
        read_sidecar(folder)


def test_a_plan_opens_with_the_tensorrt_that_built_it(engine: EngineFiles) -> None:
    assert version_problem(engine.sidecar) == ""


def test_a_plan_of_another_tensorrt_names_both_versions(engine: EngineFiles) -> None:
    problem = version_problem(engine.sidecar.model_copy(update={"version": "0.0.1"}))
    assert "built by tensorrt_rtx 0.0.1" in problem
    assert f"this machine has {engine.sidecar.version}" in problem
    assert "Install that version, or build the artifact again" in problem


def test_a_plan_of_a_tensorrt_that_is_not_here_says_so(engine: EngineFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "tensorrt_rtx is not installed" in version_problem(engine.sidecar)
