"""What this machine can build and serve. Looks, never changes anything; imports nothing heavy.

Gives `Check` rows for `doctor`, and for one target the reason why it cannot be served here.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from hermes_deploy.targets import TARGETS, Target

BUILD_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "ml-dtypes", "safetensors", "gguf", "tokenizers")
SERVE_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "jinja2", "pydantic")
SERVED_TARGETS = ("cpu",)
"""Targets that have a session in this version; the others are built, and not served yet."""


@dataclass(frozen=True)
class Check:
    """`missing`: not there, and only needed for what `advice` says. `broken`: mend it."""

    what: str
    state: Literal["ok", "missing", "broken"]
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Gpu:
    """`memory` in MiB."""

    name: str
    compute_capability: tuple[int, int]
    memory: int


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def gpus() -> list[Gpu]:
    """NVIDIA GPUs that the driver reports; empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in answer.strip().splitlines():
        name, capability, memory = (part.strip() for part in line.rsplit(",", 2))
        major, minor = capability.split(".")
        found.append(Gpu(name, (int(major), int(minor)), int(memory)))
    return found


def tritonserver() -> Path | None:
    """The container's own tritonserver, where there is one."""
    on_path = shutil.which("tritonserver")
    if on_path:
        return Path(on_path)
    container = Path("/opt/tritonserver/bin/tritonserver")
    return container if container.exists() else None


def serveable(target_name: str) -> str:
    """Empty when this machine can serve that target, else the reason in one line."""
    if target_name not in SERVED_TARGETS:
        return f"built, but this version serves only: {', '.join(SERVED_TARGETS)}"
    missing = [p for p in SERVE_PACKAGES if installed(p) is None and not _stands_in(p)]
    if missing:
        return f"missing packages: {', '.join(missing)}; run: pip install 'hermes-deploy[serve]'"
    if tritonserver() is None and installed("nvidia-pytriton") is None:
        return "no tritonserver; run: pip install 'hermes-deploy[serve]', or use NVIDIA's Triton container"
    return ""


def _stands_in(package: str) -> bool:
    return package == "onnxruntime" and installed("onnxruntime-gpu") is not None


def buildable(target: Target, cards: list[Gpu]) -> str:
    """Empty when this machine can build engines for that target, else what is missing."""
    missing = [p for p in BUILD_PACKAGES if installed(p) is None and not _stands_in(p)]
    if missing:
        return "pip install 'hermes-deploy[build]'"
    if target.engine == "onnxruntime":
        return ""
    names = {flavour: flavour.replace("_", "-") for flavour in target.flavours}
    if all(installed(name) is None for name in names.values()):
        return (
            "pip install 'hermes-deploy[tensorrt]'"
            if "tensorrt_rtx" in names
            else "pip install 'hermes-deploy[tensorrt-full]', on that GPU"
        )
    if target.needs_gpu and target.compute_capability not in [card.compute_capability for card in cards]:
        return f"must be built on that GPU ({target.title})"
    return ""


def examine() -> list[Check]:
    """Every check of `doctor`, in the order in which a person reads them."""
    cards = gpus()
    return [*_machine(cards), *_packages(), _triton(), *_targets(cards)]


def _machine(cards: list[Gpu]) -> list[Check]:
    python_ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    disk = shutil.disk_usage(Path.cwd()).free / 1e9
    return [
        Check(
            "python",
            "ok" if python_ok else "broken",
            platform.python_version(),
            "" if python_ok else "use Python 3.11 or 3.12",
        ),
        Check("machine", "ok", f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, {disk:.0f} GB free"),
        *(
            [Check("gpu", "ok", f"{c.name}, sm{c.compute_capability[0]}{c.compute_capability[1]}") for c in cards]
            or [Check("gpu", "missing", "no NVIDIA driver answers", "only needed to serve GPU targets")]
        ),
    ]


def _packages() -> list[Check]:
    cpu, gpu = installed("onnxruntime"), installed("onnxruntime-gpu")
    numpy = installed("numpy")
    embedded = installed("nvidia-pytriton")
    if cpu and gpu:
        runtime = Check(
            "onnxruntime",
            "broken",
            f"onnxruntime {cpu} and onnxruntime-gpu {gpu} overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you need",
        )
    elif cpu or gpu:
        runtime = Check("onnxruntime", "ok", f"onnxruntime {cpu}" if cpu else f"onnxruntime-gpu {gpu}")
    else:
        runtime = Check("onnxruntime", "missing", "not installed", "pip install 'hermes-deploy[serve]'")
    checks = [runtime]
    if numpy and embedded and int(numpy.split(".")[0]) >= 2:
        checks.append(
            Check(
                "numpy",
                "broken",
                f"numpy {numpy} kills the Python backend of nvidia-pytriton {embedded}",
                "pip install 'numpy<2'",
            )
        )
    missing = [p for p in BUILD_PACKAGES if installed(p) is None and not _stands_in(p)]
    checks.append(
        Check("build", "missing", f"without {', '.join(missing)}", "to build: pip install 'hermes-deploy[build]'")
        if missing
        else Check("build", "ok", f"onnx {installed('onnx')}, onnx-ir {installed('onnx-ir')}")
    )
    flavours = [f"{name} {installed(name)}" for name in ("tensorrt", "tensorrt-rtx") if installed(name)]
    checks.append(
        Check("tensorrt", "ok", ", ".join(flavours))
        if flavours
        else Check("tensorrt", "missing", "not installed", "for sm.. targets: pip install 'hermes-deploy[tensorrt]'")
    )
    return checks


def _triton() -> Check:
    own, embedded = tritonserver(), installed("nvidia-pytriton")
    if own:
        return Check("triton", "ok", f"{own}")
    if embedded:
        return Check("triton", "ok", f"embedded in nvidia-pytriton {embedded}")
    return Check("triton", "missing", "no tritonserver", "to serve: pip install 'hermes-deploy[serve]'")


def _targets(cards: list[Gpu]) -> list[Check]:
    rows = []
    for target in TARGETS.values():
        build, serve = buildable(target, cards), serveable(target.name)
        can = [verb for verb, reason in (("build", build), ("serve", serve)) if not reason]
        found = f"{target.title}: {' and '.join(can) or 'nothing'} ({', '.join(target.precisions)})"
        rows.append(
            Check(f"target {target.name}", "ok" if can else "missing", found, build or (serve if not can else ""))
        )
    return rows
