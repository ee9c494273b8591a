"""Runs in onnxruntime-genai's environment: its model builder. `genai_build.py CHECKPOINT OUTPUT fp32|int4`"""

from __future__ import annotations

import json
import runpy
import sys
import tempfile

if __name__ == "__main__":
    checkpoint, output, precision = sys.argv[1:]
    with tempfile.TemporaryDirectory() as cache:
        sys.argv = ["builder", "-i", checkpoint, "-o", output, "-p", precision, "-e", "cpu", "-c", cache]
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    print(json.dumps({"file": f"{output}/model.onnx"}))
