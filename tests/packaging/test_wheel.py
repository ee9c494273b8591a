"""What a wheel of this checkout holds, and what its metadata promises."""

from __future__ import annotations

import re
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.packaging.environments import ROOT

pytestmark = pytest.mark.xdist_group("packaging")


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    here = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "hermes_deploy").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert here - packed == set()
    for needed in (
        "hermes_deploy/py.typed",
        "hermes_deploy/recipes/int4-awq.yaml",
        "hermes_deploy/quantization/chats.jsonl",
        "hermes_deploy/verification/heldout.jsonl",
        "hermes_deploy/protocol/grpc_service_pb2.pyi",
        "hermes_deploy/repository/shims/hermes_engine.py",
    ):
        assert needed in packed


def test_the_wheel_holds_nothing_else_and_carries_its_licence(wheel: Path) -> None:
    packed = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in packed if ".dist-info/" not in name} == {"hermes_deploy"}
    assert {name.rsplit("/", 1)[1] for name in packed if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_the_notice_names_the_source_of_the_stubs_with_its_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith("licenses/NOTICE"))
    notice = archive.read(name).decode()
    assert "Redistribution and use in source and binary forms" in notice
    assert "NVIDIA CORPORATION & AFFILIATES" in notice
    assert "SmolLM2" in notice


def test_the_command_and_the_extras_are_declared(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    extras = set(metadata.get_all("Provides-Extra") or ())
    assert {"client", "cli", "serve", "cuda", "build", "tensorrt", "tensorrt-full", "crosscheck", "dev"} <= extras
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "hermes-deploy = hermes_deploy.cli:main" in archive.read(f"{info}/entry_points.txt").decode()


def test_the_constraints_are_exact_plain_versions_without_doubles() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines]
    assert len(names) == len(set(names))


def test_every_requirement_of_the_extras_is_constrained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    apart = {"crosscheck", "tensorrt-full"}  # they live in environments of their own
    for extra, requirements in project["optional-dependencies"].items():
        for requirement in requirements:
            name = re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()  # type: ignore[index]
            assert extra in apart or name in {*pinned, "hermes-deploy"}, (
                f"{name} of [{extra}] is not in constraints.txt"
            )
