"""A stand-in for the module `tensorrt`: what a session calls of it, computed by ONNX Runtime on the CPU.

It reads and writes the very addresses that were set and refuses what TensorRT's documentation refuses:
shapes outside the profile, addresses that are not aligned, past and present apart. Nothing that a test sees
here says that TensorRT does the same; `test_gpu_sessions` holds its names against the real package.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}

__version__ = "0.0.fake"


class ILogger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

    def log(self, level: int, message: str) -> None:
        raise NotImplementedError


class TensorLocation:
    DEVICE, HOST = 0, 1


class Runtime:
    """`profiles` and `hosted` stand for what a real plan carries in itself; the "plan" is an ONNX file."""

    profiles: list[dict[str, tuple[int, int]]]
    hosted: tuple[str, ...] = ()

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, content: Any) -> Engine | None:
        if bytes(content[:4]) == b"junk":
            self._logger.log(ILogger.Severity.ERROR, "header.magicTag == kEXPECTED_MAGIC_TAG failed")
            return None
        # the weights lie beside the file, so the file is found by what is written in it
        return Engine(Path(bytes(content).decode()), self._logger)


class Engine:
    def __init__(self, graph: Path, logger: ILogger) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        self.logger = logger
        self.contexts: list[Context] = []

    def get_tensor_location(self, name: str) -> int:
        return TensorLocation.HOST if name in Runtime.hosted else TensorLocation.DEVICE

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return name.replace("present", "past") if name.startswith("present") else None

    def create_execution_context(self) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._profile: dict[str, tuple[int, int]] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert isinstance(stream, int)
        self._profile = Runtime.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None, "no profile was chosen"
        for size, wanted in zip(self._engine.inputs[name].shape, shape, strict=True):
            least, most = self._profile[size] if isinstance(size, str) else (size, size)
            if not least <= wanted <= most:
                return self._refuse(f"{name}: {wanted} is not in [{least}, {most}] of dimension {size}")
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % 256 and name not in Runtime.hosted:
            return self._refuse(f"{name}: address {address} is not aligned to 256 bytes")
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert isinstance(stream, int)
        binding = self._engine.session.io_binding()
        sizes: dict[str, int] = {}
        for name, node in self._engine.inputs.items():
            shape = self.shapes[name]
            for dimension, size in zip(node.shape, shape, strict=True):
                if isinstance(dimension, str) and sizes.setdefault(dimension, size) != size:
                    return self._refuse(f"{name}: dimension {dimension} is {size} and {sizes[dimension]}")
            binding.bind_input(name, "cpu", 0, _DTYPES[node.type], shape, self.addresses[name])
        for node in self._engine.session.get_outputs():
            shape = tuple(sizes[size] if isinstance(size, str) else size for size in node.shape)
            if (
                node.name.startswith("present")
                and self.addresses[node.name] != self.addresses[node.name.replace("present", "past")]
            ):
                return self._refuse(f"{node.name} does not share the address of its cache")
            binding.bind_output(node.name, "cpu", 0, _DTYPES[node.type], shape, self.addresses[node.name])
        self._engine.session.run_with_iobinding(binding)
        return True

    def _refuse(self, why: str) -> bool:
        self._engine.logger.log(ILogger.Severity.ERROR, why)
        return False
