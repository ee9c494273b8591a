"""The papers of an artifact: what went in, what the gate found, and nothing of the machine that made it."""

from __future__ import annotations

import dataclasses
import getpass
import json
import re
import shutil
import socket
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

import hermes_deploy
from hermes_deploy.checkpoints.checkpoint import AdapterFacts
from hermes_deploy.errors import BuildError, GateError
from hermes_deploy.pipeline import BuildRequest, build_artifact
from hermes_deploy.pipeline.package import TOOLS, package
from hermes_deploy.repository.manifest import CalibrationEntry, Manifest, list_files, read_manifest, verify_files
from tests.fixtures.tiny import make_mistral

ROOT = Path(__file__).parents[2]
CARD = "---\nlicense: mit\n---\n# A tiny poet\n\nKnows nothing.\n"


@dataclasses.dataclass(frozen=True)
class Packed:
    """A built artifact, and what `package` was called with for it."""

    artifact: Path
    arguments: tuple[Any, ...]

    def again(self, folder: Path, **changes: Any) -> Manifest:
        """`package` over a copy in `folder`; `gate`: changes of the gate, `checkpoint`: of the checkpoint."""
        shutil.copytree(self.artifact, folder)
        (folder / "manifest.json").unlink()
        _, checkpoint, recipe, built = self.arguments
        checkpoint = dataclasses.replace(checkpoint, **changes.pop("checkpoint", {}))
        gates = changes.pop("gate", {})
        built = [dataclasses.replace(each, gate=dataclasses.replace(each.gate, **gates)) for each in built]
        return package(folder, checkpoint, recipe, built, **changes)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("packed")
    model = make_mistral(folder / "tiny-poet")
    (model / "README.md").write_text(CARD)
    calls = []

    def recording(*arguments: Any, **options: Any) -> Manifest:
        calls.append(arguments)
        return package(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hermes_deploy.pipeline.build.package", recording)
        build_artifact(BuildRequest(str(model), folder / "artifact", "fp32", ("cpu",), max_context=64, max_slots=2))
    return Packed(folder / "artifact", calls[0])


def test_licence_citation_card_gate_report_and_bill_of_materials_are_there_and_named(packed: Packed) -> None:
    manifest = read_manifest(packed.artifact)
    papers = {"MODEL_LICENSE", "MODEL_CITATION", "MODEL_CARD.md", "gate.json", "sbom.cdx.json"}
    assert papers <= set(manifest.files)
    assert all(manifest.files[name].size > 0 for name in papers)
    assert (packed.artifact / "MODEL_CARD.md").read_text() == CARD


def test_a_checkpoint_without_a_card_says_so(packed: Packed, tmp_path: Path) -> None:
    packed.again(tmp_path / "a", checkpoint={"model_card": ""})
    assert "carries no model card" in (tmp_path / "a/MODEL_CARD.md").read_text()


def test_the_manifest_validates_against_its_published_schema(packed: Packed) -> None:
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    jsonschema.validate(json.loads((packed.artifact / "manifest.json").read_text()), schema)


def test_the_bill_is_valid_and_agrees_with_the_versions_of_the_manifest(packed: Packed) -> None:
    text = (packed.artifact / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    listed = {each["name"]: each["version"] for each in json.loads(text)["components"] if "version" in each}
    versions = read_manifest(packed.artifact).versions
    assert versions == listed
    assert versions["hermes-deploy"] == hermes_deploy.__version__
    assert {"python", "onnxruntime", "onnx-ir", "numpy", "tokenizers"} <= set(versions)
    assert not {"tensorrt-rtx", "pytest", "torch", "model-signing"} & set(versions), "took no part in this build"


def test_the_tools_are_those_that_the_build_extra_installs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {Requirement(line).name for line in (*extras["cli"], *extras["build"])} - {"hermes-deploy"}
    # onnxruntime-gpu takes the place of onnxruntime where the extra cuda was installed
    assert set(TOOLS) - {"onnxruntime-gpu"} == named | {"packaging"}


def test_calibration_and_adapter_stand_in_manifest_and_bill(packed: Packed, tmp_path: Path) -> None:
    adapter = AdapterFacts(
        name="poet-lora",
        sha256="a" * 64,
        base_model="",
        rank=8,
        alpha=16.0,
        modules=("k_proj", "q_proj"),
        merged_tensors=4,
        merged_into="tiny",
        merged_into_sha256="b" * 64,
        license_id="MIT",
    )
    calibration = CalibrationEntry(source="chats.jsonl", sha256="c" * 64, chats=3, tokens=500)
    manifest = packed.again(tmp_path / "a", checkpoint={"adapter": adapter}, calibration=calibration)
    assert read_manifest(tmp_path / "a") == manifest
    assert manifest.model.adapter is not None
    assert (manifest.model.adapter.name, manifest.model.adapter.merged_tensors) == ("poet-lora", 4)
    assert manifest.calibration == calibration
    bill = (tmp_path / "a/sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    assert "poet-lora" in bill and "chats.jsonl" in bill


def test_every_number_of_the_gate_is_in_the_manifest(packed: Packed, tmp_path: Path) -> None:
    manifest = packed.again(tmp_path / "a", gate={"intervals": {"kl": (0.25, 0.75)}})
    measures = manifest.targets[0].gate.measures
    assert (measures["kl_low"], measures["kl_high"]) == (0.25, 0.75)
    assert {"kl", "top1", "perplexity_ratio", "tensor_error", "positions"} <= set(measures)


FAILED = {"passed": False, "problems": ("mean KL in nats is 3, allowed is at most 0.1",)}


def test_a_failed_gate_is_shipped_only_with_a_reason_and_both_stand_in_the_manifest(
    packed: Packed, tmp_path: Path
) -> None:
    for number, reason in enumerate((None, "", "  ")):
        with pytest.raises(GateError, match="--accept-degraded REASON"):
            packed.again(tmp_path / f"refused-{number}", gate=FAILED, degraded=reason)
        assert not (tmp_path / f"refused-{number}/manifest.json").exists()
    packed.again(tmp_path / "a", gate=FAILED, degraded="a demonstration of failure")
    manifest = read_manifest(tmp_path / "a")
    assert manifest.degraded == "a demonstration of failure"
    assert manifest.targets[0].gate.problems == list(FAILED["problems"])
    assert json.loads((tmp_path / "a/gate.json").read_text())["cpu"]["passed"] is False


def test_a_reason_for_a_gate_that_passed_is_not_kept(packed: Packed, tmp_path: Path) -> None:
    assert packed.again(tmp_path / "a", degraded="in case").degraded is None


def test_a_measure_that_is_not_finite_is_never_shipped(packed: Packed, tmp_path: Path) -> None:
    measures = dataclasses.replace(packed.arguments[3][0].gate.measures, kl=float("inf"))
    with pytest.raises(GateError, match="measured kl that is not a finite number"):
        packed.again(tmp_path / "a", gate={**FAILED, "measures": measures}, degraded="all the same")


def test_a_gate_that_ran_other_tensors_is_refused(packed: Packed, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="ran other tensors than its engine holds"):
        packed.again(tmp_path / "a", gate={"tensors_sha256": "0" * 64})


def test_packed_again_elsewhere_and_later_only_the_time_differs(packed: Packed, tmp_path: Path) -> None:
    first = read_manifest(packed.artifact)
    again = packed.again(tmp_path / "elsewhere", created="2030-01-01T00:00:00+00:00")
    assert again.model_copy(update={"created": first.created}) == first
    assert verify_files(tmp_path / "elsewhere", again) == []


def test_no_file_holds_a_path_or_a_name_of_the_machine_that_built_it(packed: Packed) -> None:
    private = {str(packed.artifact.parent), str(ROOT), str(Path.home()), socket.gethostname()}
    words = [re.escape(word) for word in private if len(word) > 3]
    words.append(rf"/{re.escape(getpass.getuser())}/")
    found = re.compile("|".join(words).encode())
    holding = [
        name
        for name in [*list_files(packed.artifact), "manifest.json"]
        if found.search((packed.artifact / name).read_bytes())
    ]
    assert holding == []
