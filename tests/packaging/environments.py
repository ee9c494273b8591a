"""Clean virtual environments from a wheel of this checkout, with the versions of constraints.txt."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("hermes_deploy", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


def build_wheel(work: Path) -> Path:
    """Builds from a copy: nothing is written into the checkout, and no leftover of it gets in."""
    copy = work / "source"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, copy / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(work), str(copy)], check=True
    )
    (wheel,) = work.glob("*.whl")
    return wheel


def make_environment(folder: Path, wheel: Path, extra: str) -> CleanEnvironment:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    environment = CleanEnvironment(folder)
    environment.pip("install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[{extra}]")
    return environment


class CleanEnvironment:
    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        # neither this environment's packages nor the checkout leak in
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self.variables = {**kept, "PATH": f"{self.bin}:{os.defpath}"}
        self._folder = folder

    def pip(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def packages(self) -> set[str]:
        """Names of everything that is installed, in lower case with hyphens."""
        listed = json.loads(self.pip("list", "--format", "json", "--disable-pip-version-check"))
        return {entry["name"].lower().replace("_", "-") for entry in listed}

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self._folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
