"""Facts that numbers are worth nothing without: the machine, the versions, the artifact. Looks, changes nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from hermes_deploy import __version__
from hermes_deploy.machine import gpus, installed
from hermes_deploy.repository.manifest import MANIFEST, hash_file, read_manifest

_PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt-rtx",
    "tensorrt",
    "tokenizers",
    "grpcio",
    "nvidia-pytriton",
)


def machine_facts() -> dict[str, Any]:
    """`threads`: what a CPU session runs with. `load`: runnable processes, a mean over the last minute: more
    than none of ours means that something else shares the cores."""
    from hermes_deploy.runtime.sessions.ort_cpu import physical_cores

    versions = {name: found for name in _PACKAGES if (found := installed(name)) is not None}
    return {
        "machine": {
            "architecture": platform.machine(),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": physical_cores(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": [gpu.name for gpu in gpus()],
            "kernel": platform.release(),
            "load": round(os.getloadavg()[0], 2),
        },
        "versions": {"hermes-deploy": __version__, "python": platform.python_version(), **versions},
    }


def artifact_facts(artifact: Path, target: str) -> dict[str, Any]:
    """`manifest_sha256` names the artifact to the last byte."""
    manifest = read_manifest(artifact)
    entry = next(each for each in manifest.targets if each.name == target)
    return {
        "artifact": {
            "model": manifest.model.name,
            "recipe": manifest.recipe["name"],
            "target": target,
            "precision": entry.precision,
            "max_context": manifest.max_context,
            "max_slots": manifest.max_slots,
            "manifest_sha256": hash_file(artifact / MANIFEST).sha256,
        }
    }


def _cpu_model() -> str:
    """As the kernel names it; the architecture where it names none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
