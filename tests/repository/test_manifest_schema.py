"""docs/manifest.schema.json says what a manifest holds, to whoever reads one without this package."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hermes_deploy.errors import ArtifactError
from hermes_deploy.repository.demo import demo_config
from hermes_deploy.repository.manifest import read_manifest
from tests.serving.artifact import seal

ROOT = Path(__file__).parents[2]
CHECKED_IN = ROOT / "docs" / "manifest.schema.json"

Document = dict[str, Any]


def generated() -> str:
    spec = importlib.util.spec_from_file_location("schema", ROOT / "scripts" / "generate_manifest_schema.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return str(script.schema())


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("text")
    seal(tmp_path, demo_config())
    return tmp_path


def test_the_schema_that_is_checked_in_is_that_of_the_code() -> None:
    assert CHECKED_IN.read_text() == generated(), "run scripts/generate_manifest_schema.py"


def test_a_manifest_validates_against_the_schema(artifact: Path) -> None:
    schema = json.loads(CHECKED_IN.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads((artifact / "manifest.json").read_text()), schema)


def _failed(document: Document, problems: list[str]) -> None:
    document["targets"][0]["gate"] |= {"passed": False, "problems": problems}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("degraded"), "degraded: Field required"),
        (lambda d: d.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda d: d["model"].update(sha256="abc"), "model.sha256: "),
        (lambda d: d["files"]["file"].update(size=-1), "files.file.size: "),
        (lambda d: d["targets"][0]["gate"]["measures"].update(kl=float("nan")), "gate.measures.kl: .*finite"),
    ],
)
def test_what_the_schema_does_not_allow_is_refused(
    artifact: Path, change: Callable[[Document], object], message: str
) -> None:
    path = artifact / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=f"is damaged: .*{message}"):
        read_manifest(artifact)
    if "finite" not in message:  # JSON itself has no NaN
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, json.loads(CHECKED_IN.read_text()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: _failed(d, ["KL is 1"]), "the gate of cpu failed and no reason to ship it is given"),
        (lambda d: (_failed(d, ["KL is 1"]), d.update(degraded="  ")), "no reason to ship it is given"),
        (lambda d: (_failed(d, []), d.update(degraded="why not")), "passed is False with 0 problems"),
        (lambda d: d.update(degraded="why not"), "a reason for a failed gate is given and every gate passed"),
    ],
)
def test_a_failed_gate_and_the_reason_to_ship_it_stand_together_or_not_at_all(
    artifact: Path, change: Callable[[Document], object], message: str
) -> None:
    path = artifact / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=message):
        read_manifest(artifact)
    _failed(document, ["KL is 1"])
    document["degraded"] = "for the demonstration"
    path.write_text(json.dumps(document))
    assert read_manifest(artifact).degraded == "for the demonstration"
