"""What this machine can build and serve. Looks, never changes anything; imports nothing heavy.

Gives `Check` rows for `doctor`, and for one target the reason why it cannot be built or served
here. TensorRT is tried in a process of its own, because an import can fail halfway.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from hermes_deploy.targets import TARGETS, Flavour, Target

BUILD_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "ml-dtypes", "safetensors", "gguf", "tokenizers")
SERVE_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "jinja2", "pydantic")
FLAVOURS: dict[Flavour, str] = {
    "tensorrt_rtx": "pip install 'hermes-deploy[tensorrt]'",
    "tensorrt": "pip install 'hermes-deploy[tensorrt-full]' (NVIDIA's own package index)",
}
"""The TensorRT packages, in order of preference, and what installs each."""
CUDA_EXTRA = "pip uninstall -y onnxruntime; pip install 'hermes-deploy[cuda]'"
CUDA_MEMORY = "cuda-bindings"
"""What sessions on a GPU reach its memory with; both GPU extras bring it."""
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a0808"
    "0112040a02080142040a001011"
)
"""An ONNX graph of one Identity of one float: the least that a provider can be tried with."""


@dataclass(frozen=True)
class Check:
    """`missing`: not there, and only needed for what `advice` says. `broken`: mend it."""

    what: str
    state: Literal["ok", "missing", "broken"]
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Gpu:
    name: str
    compute_capability: tuple[int, int]


@dataclass(frozen=True)
class Package:
    """`version` is empty when the package cannot be used; then `trouble` says why. `present`: it is installed."""

    version: str
    trouble: str = ""
    present: bool = True


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs that the driver reports, in the order of their PCI bus; empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = []
    for line in answer.strip().splitlines():
        name, capability = (part.strip() for part in line.rsplit(",", 1))
        major, minor = capability.split(".")
        found.append(Gpu(name, (int(major), int(minor))))
    return tuple(found)


def tensorrt_package(flavour: Flavour) -> Package:
    """The version of that TensorRT package as it reports itself when really imported."""
    if importlib.util.find_spec(flavour) is None:
        return Package("", f"the package {flavour} is not installed", present=False)
    return _try_import(flavour)


@functools.cache
def _try_import(flavour: Flavour) -> Package:
    code = f"import sys; sys.path[:] = {sys.path!r}; import {flavour} as trt; print(trt.__version__)"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    if tried.returncode == 0:
        return Package(tried.stdout.split()[-1])
    # a broken full TensorRT names the missing library first, then prints advice
    lines = [line for line in tried.stderr.splitlines() if "rror" in line] or ["it crashed"]
    return Package("", f"the package {flavour} is installed but cannot be imported: {lines[-1].strip()}")


@functools.cache
def provider_problem(provider: str) -> str:
    """Empty when the onnxruntime here really runs a graph on that provider, else its own last words.

    Being in the package's list says nothing: where CUDA or cuDNN is missing, a session silently runs on the CPU.
    """
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import onnxruntime as ort, numpy as np\n"
        f"if {provider!r} == 'CUDAExecutionProvider': ort.preload_dlls()\n"
        f"run = ort.InferenceSession({_IDENTITY!r}, providers=[{provider!r}])\n"
        f"run.run(None, {{'x': np.ones(1, np.float32)}}); print(run.get_providers()[0])"
    )
    try:
        tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "it did not answer within 120 s"
    if tried.stdout.split()[-1:] == [provider]:
        return ""
    lines = [line for line in tried.stderr.splitlines() if "rror" in line or "not in available" in line]
    return lines[-1].strip() if lines else "it gave no reason"


def tritonserver() -> Path | None:
    """The container's own tritonserver, where there is one."""
    on_path = shutil.which("tritonserver")
    if on_path:
        return Path(on_path)
    container = Path("/opt/tritonserver/bin/tritonserver")
    return container if container.exists() else None


def runnable(target: Target) -> str:
    """Empty when an engine of that target can be opened on this machine, else all that is missing, in one line."""
    if target.engine == "tensorrt":
        reasons = [_no_gpu(target.compute_capability), _no_tensorrt(target)]
    elif target.name == "cuda":
        reasons = [_no_gpu(None), _no_cuda_provider()]
    else:
        return ""
    if installed(CUDA_MEMORY) is None:
        reasons.append(f"the package {CUDA_MEMORY} is not installed; run: pip install -c constraints.txt {CUDA_MEMORY}")
    return "; ".join(reason for reason in reasons if reason)


def _no_gpu(capability: tuple[int, int] | None) -> str:
    found = ", ".join(f"{gpu.name} (sm{gpu.compute_capability[0]}{gpu.compute_capability[1]})" for gpu in gpus())
    if not found:
        return "no NVIDIA GPU was found (nvidia-smi does not answer): install NVIDIA's driver, or use another machine"
    if capability and capability not in [gpu.compute_capability for gpu in gpus()]:
        return f"it needs a GPU of sm{capability[0]}{capability[1]}; found: {found}. Build for the GPU that is here"
    return ""


def _no_tensorrt(target: Target) -> str:
    packages = {flavour: tensorrt_package(flavour) for flavour in target.flavours}
    if any(package.version for package in packages.values()):
        return ""
    return "; or: ".join(f"{package.trouble} ({FLAVOURS[flavour]})" for flavour, package in packages.items())


def _no_cuda_provider() -> str:
    if installed("onnxruntime-gpu") is None:
        return f"onnxruntime-gpu is not installed; run: {CUDA_EXTRA}"
    if installed("onnxruntime") is not None:
        return f"onnxruntime and onnxruntime-gpu overwrite each other's files; run: {CUDA_EXTRA}"
    problem = provider_problem("CUDAExecutionProvider") if gpus() else ""
    return problem and f"onnxruntime-gpu cannot use CUDA here: {problem}; run: pip install 'hermes-deploy[cuda]'"


def serveable(target_name: str) -> str:
    """Empty when this machine can serve that target, else the reason in one line."""
    if target_name not in TARGETS:
        return f"this version knows no such target; it knows: {', '.join(TARGETS)}"
    problem = runnable(TARGETS[target_name])
    if problem:
        return problem
    missing = [p for p in SERVE_PACKAGES if installed(p) is None and not _stands_in(p)]
    if missing:
        return f"missing packages: {', '.join(missing)}; run: pip install 'hermes-deploy[serve]'"
    if tritonserver() is None and installed("nvidia-pytriton") is None:
        return "no tritonserver; run: pip install 'hermes-deploy[serve]', or use NVIDIA's Triton container"
    return _numpy_problem()


def _numpy_problem() -> str:
    """Why the numpy here cannot serve: the Python backend of the embedded Triton dies with numpy 2."""
    numpy, embedded = installed("numpy"), installed("nvidia-pytriton")
    if tritonserver() is None and embedded and numpy and int(numpy.split(".")[0]) >= 2:
        return f"numpy {numpy} kills the Python backend of nvidia-pytriton {embedded}; run: pip install 'numpy<2'"
    return ""


def _stands_in(package: str) -> bool:
    return package == "onnxruntime" and installed("onnxruntime-gpu") is not None


def buildable(target: Target) -> str:
    """Empty when this machine can build for that target, else what is missing, in one line."""
    missing = _missing_to_build()
    if missing:
        return f"missing packages: {', '.join(missing)}; run: pip install 'hermes-deploy[build]'"
    if target.engine == "onnxruntime":
        return ""
    problems = [engine_problem(target, flavour) for flavour in target.flavours]
    return "" if "" in problems else "; or: ".join(problems)


def engine_problem(target: Target, flavour: Flavour) -> str:
    """Empty when that TensorRT package can build for `target` on this machine, else why not."""
    if flavour not in target.flavours:
        return f"{flavour} has no kernels for {target.name}"
    package = tensorrt_package(flavour)
    if not package.version:
        return f"{package.trouble} ({FLAVOURS[flavour]})"
    capabilities = [gpu.compute_capability for gpu in gpus()]
    if flavour == "tensorrt" and target.compute_capability not in capabilities:
        found = ", ".join(f"{a}.{b}" for a, b in capabilities)
        wanted = ".".join(str(n) for n in target.compute_capability or ())
        have = f"found compute capability {found}" if found else "no NVIDIA GPU was found"
        return f"full TensorRT builds only on the GPU itself (compute capability {wanted}); {have}"
    return ""


def _missing_to_build() -> list[str]:
    return [p for p in BUILD_PACKAGES if installed(p) is None and not _stands_in(p)]


def examine() -> list[Check]:
    """Every check of `doctor`, in the order in which a person reads them."""
    return [*_machine(), *_packages(), _triton(), *_targets()]


def _machine() -> list[Check]:
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
            [Check("gpu", "ok", f"{c.name}, sm{c.compute_capability[0]}{c.compute_capability[1]}") for c in gpus()]
            or [Check("gpu", "missing", "no NVIDIA driver answers", "only needed to serve GPU targets")]
        ),
    ]


def _packages() -> list[Check]:
    cpu, gpu = installed("onnxruntime"), installed("onnxruntime-gpu")
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
    if _numpy_problem():
        checks.append(Check("numpy", "broken", *_numpy_problem().split("; run: ")))
    missing = _missing_to_build()
    checks.append(
        Check("build", "missing", f"without {', '.join(missing)}", "to build: pip install 'hermes-deploy[build]'")
        if missing
        else Check("build", "ok", f"onnx {installed('onnx')}, onnx-ir {installed('onnx-ir')}")
    )
    return [*checks, _tensorrt()]


def _tensorrt() -> Check:
    packages = {flavour: tensorrt_package(flavour) for flavour in FLAVOURS}
    broken = [package.trouble for package in packages.values() if package.present and not package.version]
    if broken:
        return Check("tensorrt", "broken", "; ".join(broken), "install it again, or uninstall it")
    found = [f"{flavour} {package.version}" for flavour, package in packages.items() if package.version]
    if not found:
        return Check("tensorrt", "missing", "not installed", f"for sm.. targets: {FLAVOURS['tensorrt_rtx']}")
    return Check("tensorrt", "ok", ", ".join(found))


def _triton() -> Check:
    own, embedded = tritonserver(), installed("nvidia-pytriton")
    if own:
        return Check("triton", "ok", f"{own}")
    if embedded:
        return Check("triton", "ok", f"embedded in nvidia-pytriton {embedded}")
    return Check("triton", "missing", "no tritonserver", "to serve: pip install 'hermes-deploy[serve]'")


def _targets() -> list[Check]:
    rows = []
    for target in TARGETS.values():
        build, serve = buildable(target), serveable(target.name)
        can = [verb for verb, reason in (("build", build), ("serve", serve)) if not reason]
        found = f"{target.title}: {' and '.join(can) or 'nothing'} ({', '.join(target.precisions)})"
        rows.append(
            Check(f"target {target.name}", "ok" if can else "missing", found, build or (serve if not can else ""))
        )
    return rows
