"""Imports point down: a room imports only from rooms that stand below it in docs/architecture.md."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hermes_deploy"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))

SHIMS = PACKAGE / "repository" / "shims"
"""What Triton imports, at the top of everything. `repository/` copies these files as text."""


def documented_rooms() -> list[str]:
    """Rooms in the order of the table in docs/architecture.md, highest first, without `/` and `.py`."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [name.removesuffix("/").removesuffix(".py") for row in rows for name in re.findall(r"`([^`]+)`", row)]


def imports(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} imports by a relative name"
            if node.module == PACKAGE.name:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith(f"{PACKAGE.name}.")} - {"__version__"}


def test_every_room_stands_in_the_document_and_every_documented_room_exists() -> None:
    assert sorted(documented_rooms()) == sorted({room_of(path) for path in FILES} - {"__init__"})


@pytest.mark.parametrize("room", documented_rooms())
def test_a_room_imports_only_from_rooms_below_it(room: str) -> None:
    rooms = documented_rooms()
    below = set(rooms[rooms.index(room) :])
    files = [path for path in FILES if room_of(path) == room and path.parent != SHIMS]
    upward = {str(path.relative_to(ROOT)): sorted(rooms_imported(path) - below) for path in files}
    assert {name: found for name, found in upward.items() if found} == {}


def test_nobody_imports_what_triton_imports() -> None:
    found = [path for path in FILES for name in imports(path) if name.startswith("hermes_deploy.repository.shims")]
    assert found == []


def test_the_client_imports_only_grpc_protobuf_and_the_standard_library() -> None:
    allowed = {"grpc", "google", *sys.stdlib_module_names}
    for path in FILES:
        if room_of(path) == "protocol":
            assert {name.split(".")[0] for name in imports(path)} <= allowed | {PACKAGE.name}, path
            assert rooms_imported(path) <= {"protocol"}, path
        elif room_of(path) == "client":
            assert {name.split(".")[0] for name in imports(path)} <= allowed | {PACKAGE.name}, path
            assert rooms_imported(path) <= {"client", "protocol", "errors"}, path


def test_the_package_needs_neither_torch_nor_transformers() -> None:
    found = {
        str(path.relative_to(ROOT)): name
        for path in FILES
        for name in imports(path)
        if name.split(".")[0] in ("torch", "transformers")
    }
    assert found == {}
