"""engine.json: what engine.plan takes and gives, written when it was built.

A plan can be opened only on its own GPU; the sidecar is how everything else knows it. The two
belong together by the sha256 of the plan. Pydantic at the border: an unknown key is an ArtifactError.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermes_deploy.errors import ArtifactError
from hermes_deploy.machine import tensorrt_package
from hermes_deploy.targets import Flavour, Precision

PLAN = "engine.plan"
SIDECAR = "engine.json"
SCHEMA = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorEntry(_Frozen):
    """`shape`: sizes, or the name of a dimension that the profiles size. `dtype`: "fp16", "int64", ..."""

    name: str
    dtype: str
    shape: list[int | str]


class SizeRange(_Frozen):
    """Smallest and largest size, and the one that kernels are chosen for."""

    min: int
    opt: int
    max: int


class ProfileEntry(_Frozen):
    """`dimensions`: named dimension of the inputs -> sizes that it may have while this profile is active."""

    name: str
    dimensions: dict[str, SizeRange]


class LayerSummary(_Frozen):
    """Counted in TensorRT's own layer record, over all profiles together.

    `linears`: matrices of the graph by their form (a recipe's word), counted once each.
    `gemms`: kernels that read a matrix in its dtype, and activations in theirs, and multiply; at least
    one for each linear and profile, or the build fails. `attentions`: attention nodes of the graph;
    `fused_attention`: kernels that do a whole one. `kernels`: all kernels.
    """

    linears: dict[str, int]
    gemms: dict[str, int]
    attentions: int
    fused_attention: dict[str, int]
    kernels: int


class PlanEntry(_Frozen):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(gt=0)


class EngineSidecar(_Frozen):
    """`aliases`: output -> input that must be bound to the very same device address.

    `kept`: linears that are in the activation dtype and not in `precision`.

    `targets`: names of the target records; `compute_capabilities`: "8.6" and so on, in their order.
    """

    schema_version: int = SCHEMA
    flavour: Flavour
    version: str
    targets: list[str]
    compute_capabilities: list[str]
    precision: Precision
    head_precision: str
    kept: list[str]
    inputs: list[TensorEntry]
    outputs: list[TensorEntry]
    aliases: dict[str, str]
    profiles: list[ProfileEntry]
    layers: LayerSummary
    plan: PlanEntry


def write_sidecar(folder: Path, sidecar: EngineSidecar) -> Path:
    """Writes `folder/engine.json`, whole or not at all; gives its path."""
    path = folder / SIDECAR
    partial = folder / f"{SIDECAR}.partial"
    partial.write_text(json.dumps(sidecar.model_dump(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(path)
    return path


def read_sidecar(folder: Path, *, verify: bool = True) -> EngineSidecar:
    """The sidecar of `folder/engine.plan`.

    Raises ArtifactError when it is missing, damaged, or when the plan beside it is not the one it
    was written for. `verify=False` looks at the plan's size only and does not read it.
    """
    path = folder / SIDECAR
    again = "Build the artifact again."
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{folder} holds no finished engine: it has no {SIDECAR}. {again}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}. {again}") from None
    if isinstance(data, dict) and data.get("schema_version") != SCHEMA:
        raise ArtifactError(
            f"{path} has schema_version {data.get('schema_version')!r}; this version reads {SCHEMA}. {again}"
        )
    try:
        sidecar = EngineSidecar.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path} is damaged: {where}: {first['msg']}. {again}") from None
    plan = folder / PLAN
    if not plan.is_file():
        raise ArtifactError(f"{path} describes a {PLAN} that is not there. {again}")
    size = plan.stat().st_size
    if size != sidecar.plan.size:
        raise ArtifactError(f"{plan} has {size} bytes, its sidecar says {sidecar.plan.size}. {again}")
    if verify and _sha256(plan) != sidecar.plan.sha256:
        raise ArtifactError(f"{plan} is not the engine that {SIDECAR} was written for: sha256 differs. {again}")
    return sidecar


def version_problem(sidecar: EngineSidecar) -> str:
    """Why the TensorRT of this machine cannot open the plan, in one line; empty when it has the very
    version that built it. A plan that is not built to be version-compatible opens with no other."""
    package = tensorrt_package(sidecar.flavour)
    if package.version == sidecar.version:
        return ""
    found = f"this machine has {package.version}" if package.version else package.trouble
    return (
        f"{PLAN} was built by {sidecar.flavour} {sidecar.version} and opens with that version only; {found}. "
        "Install that version, or build the artifact again with the one that is here"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
