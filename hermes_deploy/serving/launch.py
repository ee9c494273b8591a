"""How tritonserver is started: which one, on which folder, with which flags and environment.

The server never runs on the artifact itself but on a run folder: links to the artifact's files, and
config.pbtxt copies that carry the chosen target and limits. So only our four models are loaded, and
nothing is written into the artifact: Python's stub leaves a __pycache__ beside model.py, whatever
its environment says.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hermes_deploy.errors import ServeError
from hermes_deploy.machine import tritonserver
from hermes_deploy.protocol.tensors import ENGINE, MODELS, PREPROCESS
from hermes_deploy.repository.triton_config import CONFIG, with_parameters
from hermes_deploy.repository.triton_parameters import (
    CONTROL,
    ENGINE_TIMEOUT,
    LOG_CONTENT,
    MAX_CONTEXT,
    MAX_SLOTS,
    OWN_KERNELS,
    PIECE_INTERVAL,
    QUEUE_LIMIT,
    REQUEST_LOG,
    SPECULATION,
    STRETCH,
    TARGET,
)
from hermes_deploy.serving.preflight import Plan
from hermes_deploy.serving.settings import Settings

CONTROL_SOCKET = "control"
"""Name of the engine's control socket in the run folder."""
REQUEST_PIPE = "requests"
"""Name of the pipe for lines about requests in the run folder."""
ADMIN = ("model-repository", "shared-memory", "trace", "logging")
"""Triton's endpoints that change the server or reach into this machine's memory."""
ADMIN_HEADER = "hermes-admin"
KEEPALIVE_MS = (10_000, 20_000)
"""A gRPC connection that was silent for so long is asked for a sign of life, and has so long to give it."""
INSIDE = "127.0.0.1"
"""Where Triton's HTTP and metrics listen."""


@dataclass(frozen=True)
class Triton:
    """`binary` and the folders that it needs; `environment` replaces or adds variables."""

    binary: Path
    backends: Path | None
    caches: Path | None
    environment: Mapping[str, str]


def find_triton(run_folder: Path) -> Triton:
    """The container's server, else the embedded one, whose backend folder is put together in `run_folder`."""
    environment = {
        # the stub takes the first python of PATH, and with it this environment's packages
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "ORT_DISABLE_TELEMETRY": os.environ.get("ORT_DISABLE_TELEMETRY", "1"),
    }
    own = tritonserver()
    if own is not None:
        return Triton(own, None, None, environment)
    package = importlib.util.find_spec("pytriton")
    if package is None or not package.submodule_search_locations:
        raise ServeError("no tritonserver; run: pip install 'hermes-deploy[serve]', or use NVIDIA's Triton container")
    root = Path(package.submodule_search_locations[0])
    embedded = root / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    backends = run_folder / "backends"
    _link_backend(embedded, backends / "python", version)
    libraries = [sysconfig.get_config_var("LIBDIR") or "", str(root.parent / "nvidia_pytriton.libs")]
    _check_libpython(Path(libraries[0]), version)
    inherited = os.environ.get("LD_LIBRARY_PATH")
    environment["LD_LIBRARY_PATH"] = os.pathsep.join([*libraries, *([inherited] if inherited else [])])
    return Triton(embedded / "bin" / "tritonserver", backends, embedded / "caches", environment)


def write_models(plan: Plan, folder: Path, settings: Settings) -> None:
    """The model repository that the server loads: `folder`/MODEL/{config.pbtxt, 1/* -> artifact}."""
    for name in MODELS:
        place = folder / name
        version = place / "1"
        version.mkdir(parents=True)
        for entry in (plan.artifact / name / "1").iterdir():
            (version / entry.name).symlink_to(entry)
        text = (plan.artifact / name / CONFIG).read_text(encoding="utf-8")
        if name in (ENGINE, PREPROCESS):
            pipe = str(folder.parent / REQUEST_PIPE)
            text = with_parameters(text, **{REQUEST_LOG: pipe, MAX_CONTEXT: str(plan.max_context)})
        if name == ENGINE:
            chosen = {
                MAX_SLOTS: str(plan.max_slots),
                TARGET: plan.target,
                QUEUE_LIMIT: str(settings.queue_limit),
                ENGINE_TIMEOUT: str(settings.engine_timeout),
                STRETCH: str(settings.stretch),
                PIECE_INTERVAL: str(settings.piece_interval),
                SPECULATION: str(settings.speculation).lower(),
                OWN_KERNELS: str(settings.own_kernels).lower(),
                CONTROL: str(folder.parent / CONTROL_SOCKET),
            }
            if settings.log_content:
                chosen[LOG_CONTENT] = "true"
            text = with_parameters(text, **chosen)
        (place / CONFIG).write_text(text, encoding="utf-8")


def command(
    triton: Triton, models: Path, host: str, ports: Mapping[str, int], shm_prefix: str, admin_secret: str
) -> list[str]:
    """The command line. `ports`: grpc, on `host`; http and metrics, on this machine only, where a doorman calls them.

    `admin_secret`: value of the header that opens `ADMIN`.

    Triton 2.51 takes the secret on its command line only, where users of this machine can read it.
    """
    restricted = f"{','.join(ADMIN)}:{ADMIN_HEADER}={admin_secret}"
    flags = [
        f"--model-repository={models}",
        "--model-control-mode=none",
        "--strict-readiness=true",
        "--exit-on-error=true",
        # our configurations are complete; completing them would start every model twice
        "--disable-auto-complete-config",
        "--allow-gpu-metrics=false",
        "--pinned-memory-pool-byte-size=0",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--backend-config=python,stub-timeout-seconds={STUB_TIMEOUT}",
        "--exit-timeout-secs=8",
        # without these a caller that was stopped, or whose network is gone, is never missed
        f"--grpc-keepalive-time={KEEPALIVE_MS[0]}",
        f"--grpc-keepalive-timeout={KEEPALIVE_MS[1]}",
        # 0: as many as it takes. By default two are sent while no data is, and a hold, or a reader that has stopped
        # reading, has no data
        "--grpc-http2-max-pings-without-data=0",
        # requests that are kept for reuse keep the memory of the largest message that they ever held
        "--grpc-infer-allocation-pool-size=0",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
    ]
    for name, port in ports.items():
        flags += [f"--{name}-port={port}", f"--{name}-address={host if name == 'grpc' else INSIDE}"]
    if triton.backends is not None:
        flags.append(f"--backend-directory={triton.backends}")
    if triton.caches is not None:
        flags.append(f"--cache-directory={triton.caches}")
    return [str(triton.binary), *flags]


STUB_TIMEOUT = 300
"""Seconds that a model may take to load."""


def _link_backend(embedded: Path, place: Path, version: str) -> None:
    stub = embedded / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        known = sorted(p.name for p in (embedded / "python_backend_stubs").iterdir())
        raise ServeError(f"the embedded Triton has no stub for Python {version}; it has: {', '.join(known)}")
    place.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (place / name).symlink_to(embedded / "backends" / "python" / name)
    (place / "triton_python_backend_stub").symlink_to(stub)


def _check_libpython(libdir: Path, version: str) -> None:
    name = sysconfig.get_config_var("INSTSONAME") or ""
    here = name.startswith("libpython") and ".so" in name and (libdir / name).exists()
    if not here and ctypes.util.find_library(f"python{version}") is None:
        raise ServeError(
            f"Triton's Python backend needs libpython{version}.so, which this Python lacks. "
            f"Run: apt-get install libpython{version}"
        )
