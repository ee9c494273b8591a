"""Does TensorRT's parser take an ONNX file? `tensorrt_parse.py FILE` prints {"parsed": ..., "error": ...}.

A process for each file, because TensorRT keeps one logger per process.
"""

from __future__ import annotations

import json
import sys

import tensorrt_rtx as trt


class Errors(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.heard: list[str] = []

    def log(self, level: trt.ILogger.Severity, message: str) -> None:
        if level in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            self.heard.append(message.strip())


def main(path: str) -> None:
    logger = Errors()
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(path)
    reported = [parser.get_error(i) for i in range(parser.num_errors)]
    errors = [f"{e.node_name()} ({e.node_operator()}): {e.desc()}" for e in reported] or logger.heard
    print(json.dumps({"parsed": bool(parsed) and not reported, "error": errors[0] if errors and not parsed else None}))


if __name__ == "__main__":
    main(sys.argv[1])
