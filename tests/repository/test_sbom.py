"""The bill of materials is valid CycloneDX, names what went in, and is the same for the same inputs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from hermes_deploy.repository.distributions import Distribution, installed_distributions
from hermes_deploy.repository.manifest import AdapterEntry, CalibrationEntry, ModelEntry
from hermes_deploy.repository.sbom import bill_of_materials

MODEL = ModelEntry(
    name="tiny",
    source="hub org/tiny",
    revision="abc123",
    sha256="1" * 64,
    family="chatml",
    architecture="MistralForCausalLM",
    parameters=1000,
    license_id="Apache-2.0",
    weights_note="",
    adapter=None,
)
ADAPTER = AdapterEntry(
    name="poet",
    sha256="2" * 64,
    base_model="org/tiny",
    rank=8,
    alpha=16.0,
    modules=["q_proj"],
    merged_tensors=2,
    merged_into="tiny",
    merged_into_sha256="4" * 64,
    license_id="MIT",
)
CALIBRATION = CalibrationEntry(source="packaged", sha256="3" * 64, chats=37, tokens=9000)
DISTRIBUTIONS = installed_distributions(["onnx", "pydantic", "gguf"])


def bill(model: ModelEntry = MODEL, distributions: tuple[Distribution, ...] = DISTRIBUTIONS) -> dict[str, Any]:
    return bill_of_materials(
        model, CALIBRATION, distributions, tools=["onnx", "absent"], builder="0.1.0", python="3.11.7"
    )


def component(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in document["components"] if each["name"] == name)


def needs(document: dict[str, Any], ref: str) -> list[str]:
    return next(each["dependsOn"] for each in document["dependencies"] if each["ref"] == ref)


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        MODEL.model_copy(update={"adapter": ADAPTER, "revision": None}),
        MODEL.model_copy(update={"license_id": "unknown"}),
        MODEL.model_copy(update={"license_id": "mistral-research, see card"}),
        MODEL.model_copy(update={"name": "Ünïcode 模型", "license_id": "LicenseRef-own"}),
    ],
)
def test_it_is_valid_cyclonedx_1_6(model: ModelEntry) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill(model))) is None


def test_the_checkpoint_as_it_was_its_adapter_and_calibration_are_components_with_their_hashes() -> None:
    document = bill(MODEL.model_copy(update={"adapter": ADAPTER}))
    for name, sha256 in (("tiny", "4" * 64), ("poet", "2" * 64), ("packaged", "3" * 64)):
        assert component(document, name)["hashes"] == [{"alg": "SHA-256", "content": sha256}]
    assert component(document, "tiny")["licenses"] == [{"expression": "Apache-2.0"}]
    assert component(document, "poet")["licenses"] == [{"expression": "MIT"}]
    assert component(document, "tiny")["version"] == "abc123"
    assert {"source", "adapter", "calibration"} <= set(needs(document, document["metadata"]["component"]["bom-ref"]))


def test_every_distribution_is_there_with_what_it_needs_and_nothing_dangles() -> None:
    document = bill()
    for each in DISTRIBUTIONS:
        found = component(document, each.name)
        assert found["purl"] == f"pkg:pypi/{each.name}@{each.version}"
    onnx, numpy = component(document, "onnx"), component(document, "numpy")
    assert onnx["licenses"] == [{"expression": "Apache-2.0"}]
    assert numpy["purl"] in needs(document, onnx["purl"])
    assert needs(document, component(document, "hermes-deploy")["purl"]) == [onnx["purl"], "python"]
    refs = [each["bom-ref"] for each in document["components"]]
    assert len(refs) == len(set(refs))
    assert {on for each in document["dependencies"] for on in each["dependsOn"]} <= set(refs)


def test_a_licence_in_words_stays_in_words_and_a_missing_one_is_not_invented() -> None:
    def licenses(expression: str, name: str) -> Any:
        each = Distribution("x", "1.0", expression, name, ())
        return component(bill(distributions=(each,)), "x").get("licenses")

    assert licenses("MIT OR Apache-2.0", "") == [{"expression": "MIT OR Apache-2.0"}]
    assert licenses("", "BSD License") == [{"license": {"name": "BSD License"}}]
    assert licenses("", "MPL-2.0 AND MIT") == [{"expression": "MPL-2.0 AND MIT"}]
    assert licenses("", "") is None


def test_the_same_inputs_give_the_same_bytes_and_others_another_serial_number() -> None:
    assert json.dumps(bill()) == json.dumps(bill())
    other = MODEL.model_copy(update={"sha256": "4" * 64})
    assert bill()["serialNumber"] != bill(other)["serialNumber"]


def test_distributions_are_found_with_what_they_require_and_absent_ones_are_left_out() -> None:
    found = {each.name: each for each in installed_distributions(["PyYAML", "jinja2[i18n]", "no-such-distribution"])}
    assert {"pyyaml", "jinja2", "markupsafe"} <= set(found)
    assert "no-such-distribution" not in found
    assert "markupsafe" in found["jinja2"].requires
    assert found["markupsafe"].license_expression == "BSD-3-Clause"
