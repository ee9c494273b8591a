"""The GPU's `Memory`, by the CUDA runtime (package cuda-bindings). See `row_memory`.

Nothing here decides anything: every method is one call of CUDA, and a call that fails is a ServeError
with CUDA's own words. Never executed on a GPU yet; without one, only the failing calls were.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import ServeError

PACKAGE = "cuda-bindings"


def cuda_runtime() -> Any:
    """The module cuda.bindings.runtime. Raises ServeError when it is not installed."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise ServeError(
            f"the package {PACKAGE} cannot be imported ({error}); a GPU's memory is reached through it. "
            f"Run: pip install -c constraints.txt {PACKAGE}"
        ) from None
    return runtime


class CudaMemory:
    """Memory of one GPU, with a stream of its own.

    `capabilities`: compute capabilities (8, 6) that the GPU may have, None = any; the first visible GPU
    that has one is taken. Raises ServeError where there is none, or no driver.
    """

    device: Literal["cpu", "cuda"] = "cuda"

    def __init__(self, capabilities: Sequence[tuple[int, int]] | None = None) -> None:
        self._cuda = cuda_runtime()
        self._addresses: list[int] = []
        self._pinned: list[int] = []
        self.index = self._choose(capabilities)
        self.use()
        # TensorRT synchronizes more than it must on the default stream
        self.stream = int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def use(self) -> None:
        # CUDA keeps the current device by thread, and the token loop is not the thread that opens a session
        self._call("cudaSetDevice", self.index)

    def allocate(self, size: int) -> int:
        address = int(self._call("cudaMalloc", size))
        self._addresses.append(address)
        self._call("cudaMemsetAsync", address, 0, size, self.stream)
        return address

    def host(self, size: int) -> npt.NDArray[np.uint8]:
        address = int(self._call("cudaHostAlloc", max(size, 1), self._cuda.cudaHostAllocDefault))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def copy(self, target: int, source: int, pitch: int, width: int, height: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", target, pitch, source, pitch, width, height, kind, self.stream)

    def upload(self, target: int, source: npt.NDArray[np.uint8]) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source.ctypes.data, source.nbytes, kind, self.stream)

    def download(self, target: npt.NDArray[np.uint8], source: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target.ctypes.data, source, target.nbytes, kind, self.stream)

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Frees everything. Arrays that `host` gave must not be touched afterwards."""
        self.use()
        self.synchronize()
        for address in self._addresses:
            self._call("cudaFree", address)
        for address in self._pinned:
            self._call("cudaFreeHost", address)
        self._call("cudaStreamDestroy", self.stream)
        self._addresses, self._pinned = [], []

    def _choose(self, capabilities: Sequence[tuple[int, int]] | None) -> int:
        attribute = self._cuda.cudaDeviceAttr
        found = []
        for index in range(self._call("cudaGetDeviceCount")):
            capability = (
                self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, index),
                self._call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, index),
            )
            if capabilities is None or capability in capabilities:
                return index
            found.append(capability)
        wanted = ", ".join(f"{a}.{b}" for a, b in capabilities or ()) or "any"
        have = ", ".join(f"{a}.{b}" for a, b in found) or "none"
        raise ServeError(
            f"no GPU of compute capability {wanted} is visible; found: {have}. "
            "Build the artifact for this GPU, or look at CUDA_VISIBLE_DEVICES."
        )

    def _call(self, name: str, *arguments: Any) -> Any:
        """What the call gives beside its status: nothing, one value or several."""
        status, *values = getattr(self._cuda, name)(*arguments)
        if status != self._cuda.cudaError_t.cudaSuccess:
            words = self._cuda.cudaGetErrorString(status)[1].decode()
            raise ServeError(f"{name} failed: {words} ({status.name}). Look at nvidia-smi: driver, free memory.")
        return values[0] if len(values) == 1 else values
