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


def ensure(tool: str) -> Path:
    requirements = HERE / f"{tool}.txt"
    stamp = FOLDER / tool / f".has-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]}"
    python = FOLDER / tool / "bin" / "python"
    if not stamp.exists():
        print(f"making .venv-crosscheck/{tool} ...", file=sys.stderr)
        _run([sys.executable, "-m", "venv", str(FOLDER / tool)])
        # the pins of this project's constraints do not hold there: the file has its own
        _run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(requirements)])
        stamp.touch()
    return python


def version(tool: str, distribution: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    return f"{distribution} {_run([str(ensure(tool)), '-c', code]).strip()}"


def run_theirs(tool: str, script: str, *arguments: str) -> Any:
    """Runs `script` beside this file in the tool's environment; gives the JSON that it printed last."""
    return json.loads(_run([str(ensure(tool)), str(HERE / script), *arguments]).splitlines()[-1])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error") or "Error:" in line]
        raise ToolUnavailableError((errors or lines or [f"ended with code {done.returncode}"])[-1])
    return done.stdout
