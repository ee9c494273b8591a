"""An environment of its own for each of the others' tools, since they cannot live with ours or with each other.

`ensure("modelopt")` makes .venv-crosscheck/modelopt from `modelopt.txt` beside this file, once for
each content of that file, and gives its Python. Raises ToolUnavailableError in pip's own words.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / ".venv-crosscheck"


class ToolUnavailableError(Exception):
    """The tool cannot be installed here, or it failed; the message is its first useful line."""


def ensure(tool: str, *, requirements: Path = HERE, folder: Path = FOLDER) -> Path:
    """The Python of folder/`tool`, which has what requirements/`tool`.txt names."""
    file = requirements / f"{tool}.txt"
    stamp = folder / tool / f".has-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    python = folder / tool / "bin" / "python"
    if not stamp.exists():
        print(f"making {(folder / tool).relative_to(ROOT)} ...", file=sys.stderr)
        run_tool([sys.executable, "-m", "venv", str(folder / tool)])
        # the pins of this project's constraints do not hold there: the file has its own
        run_tool([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(file)])
        stamp.touch()
    return python


def version(tool: str, distribution: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    return f"{distribution} {run_tool([str(ensure(tool)), '-c', code]).strip()}"


def run_theirs(tool: str, script: str, *arguments: str) -> Any:
    """Runs `script` beside this file in the tool's environment; gives the JSON that it printed last."""
    return json.loads(run_tool([str(ensure(tool)), str(HERE / script), *arguments]).splitlines()[-1])


def run_tool(command: list[str]) -> str:
    """What it printed. Raises ToolUnavailableError where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error") or "Error:" in line]
        raise ToolUnavailableError((errors or lines or [f"ended with code {done.returncode}"])[-1])
    return done.stdout
