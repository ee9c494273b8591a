"""Does an engine of this TensorRT package, built for that compute capability, open and run on this GPU?

    python rtx_loads.py PACKAGE CAPABILITY     prints one JSON line

CAPABILITY is SM89, CURRENT, ... or "" for full TensorRT, which builds for the GPU that it runs on. A process
for each question: TensorRT may end it. The engine adds a number to itself.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import numpy as np


def main() -> None:
    package, capability = sys.argv[1:]
    answer: dict[str, Any] = {"package": package, "capability": capability, "built": False, "opened": False}
    answer["ran"] = False
    heard: list[str] = []
    try:
        trt = importlib.import_module(package)
        answer["version"] = trt.__version__
        logger = make_logger(trt, heard)
        plan = build(trt, logger, capability)
        answer["built"] = plan is not None
        if plan is not None:
            engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
            answer["opened"] = engine is not None
            if engine is not None:
                answer["ran"] = run(engine)
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    answer["said"] = heard
    print(json.dumps(answer))


def build(trt: Any, logger: Any, capability: str) -> Any:
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x = network.add_input("x", trt.float16, (4, 64))
    y = network.add_elementwise(x, x, trt.ElementWiseOperation.SUM).get_output(0)
    y.name = "y"
    network.mark_output(y)
    config = builder.create_builder_config()
    if capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    return builder.build_serialized_network(network, config)


def run(engine: Any) -> bool:
    from hermes_deploy.runtime.sessions.cuda_memory import CudaMemory

    memory = CudaMemory()
    context = engine.create_execution_context()
    host = memory.host(512)
    numbers = host.view(np.float16).reshape(4, 64)
    numbers[:] = np.arange(256).reshape(4, 64) / 4
    expected = numbers + numbers
    x, y = memory.allocate(512), memory.allocate(512)
    memory.upload(x, host)
    done = context.set_tensor_address("x", x) and context.set_tensor_address("y", y)
    done = done and context.execute_async_v3(memory.stream)
    memory.download(host, y)
    memory.synchronize()
    return bool(done and (numbers == expected).all())


def make_logger(trt: Any, heard: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc] # trt is chosen at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                heard.append(message.strip())

    return Logger()


if __name__ == "__main__":
    main()
