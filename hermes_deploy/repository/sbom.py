"""sbom.cdx.json: what went into an artifact, as a CycloneDX 1.6 bill of materials.

Takes the manifest's own entries and the distributions of the build; gives the document. Pure: no clock
and no path; the serial number is made from the content, so the same inputs give the same bytes.
Specification: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from hermes_deploy.repository.distributions import Distribution
from hermes_deploy.repository.manifest import CalibrationEntry, ModelEntry

SBOM = "sbom.cdx.json"

_ARTIFACT = "artifact"
"""bom-ref of the artifact itself; it depends on everything that is its direct part."""


def bill_of_materials(
    model: ModelEntry,
    calibration: CalibrationEntry | None,
    distributions: Sequence[Distribution],
    *,
    tools: Iterable[str],
    builder: str,
    python: str,
) -> dict[str, Any]:
    """The document as JSON data.

    `distributions`: all that the build had at hand; `tools`: names of those that it imports itself.
    `builder`, `python`: versions of hermes-deploy and of the interpreter.
    """
    inputs = [_source(model)]
    if model.adapter is not None:
        adapter = _hashed("machine-learning-model", model.adapter.name, model.adapter.sha256, "adapter")
        inputs.append({**adapter, "licenses": _licenses("", model.adapter.license_id)})
    if calibration is not None:
        texts = _hashed("data", calibration.source, calibration.sha256, "calibration")
        inputs.append({**texts, "data": [{"type": "dataset", "name": calibration.source}]})
    program = {**_package("hermes-deploy", builder), "licenses": _licenses("Apache-2.0", "")}
    interpreter = {"type": "platform", "bom-ref": "python", "name": "python", "version": python}
    libraries = [_library(each) for each in distributions]
    refs = {each.name: _purl(each.name, each.version) for each in distributions}
    needs = {
        _ARTIFACT: [*(part["bom-ref"] for part in inputs), program["bom-ref"]],
        program["bom-ref"]: ["python", *(refs[name] for name in tools if name in refs)],
        **{refs[each.name]: [refs[name] for name in each.requires] for each in distributions},
    }
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "machine-learning-model", "bom-ref": _ARTIFACT, "name": model.name}},
        "components": [*inputs, program, interpreter, *libraries],
        "dependencies": [{"ref": ref, "dependsOn": sorted(set(on))} for ref, on in sorted(needs.items())],
    }
    return {**document, "serialNumber": _serial(document)}


def _source(model: ModelEntry) -> dict[str, Any]:
    """The checkpoint as it was found, before an adapter was merged into it."""
    name, sha256 = model.name, model.sha256
    if model.adapter is not None:
        name, sha256 = model.adapter.merged_into, model.adapter.merged_into_sha256
    component = _hashed("machine-learning-model", name, sha256, "source")
    component["description"] = f"{model.source}; weights: {model.weights_note or 'as published'}"
    component["licenses"] = _licenses("", model.license_id)
    if model.revision is not None:
        component["version"] = model.revision
    return component


def _hashed(kind: str, name: str, sha256: str, ref: str) -> dict[str, Any]:
    return {"type": kind, "bom-ref": ref, "name": name, "hashes": [{"alg": "SHA-256", "content": sha256}]}


def _library(each: Distribution) -> dict[str, Any]:
    component = _package(each.name, each.version)
    if licenses := _licenses(each.license_expression, each.license_name):
        component["licenses"] = licenses
    return component


def _package(name: str, version: str) -> dict[str, Any]:
    purl = _purl(name, version)
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _purl(name: str, version: str) -> str:
    # of what may stand in a Python version, only these two would have to be quoted
    return f"pkg:pypi/{name}@{version.replace('+', '%2B').replace('!', '%21')}"


def _licenses(expression: str, name: str) -> list[dict[str, Any]]:
    """`name` may be an SPDX expression all the same: many packages write one where a name is asked for."""
    try:
        return [{"expression": str(canonicalize_license_expression(expression or name))}]
    except InvalidLicenseExpression:
        words = expression or name
        return [{"license": {"name": words}}] if words else []


def _serial(document: dict[str, Any]) -> str:
    """A URN of the content's own hash, marked as a UUID of version 8 (RFC 9562: made as one likes)."""
    digest = bytearray(hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return f"urn:uuid:{uuid.UUID(bytes=bytes(digest))}"
