"""Runs in optimum's environment: exports a Hugging Face folder as ONNX. `optimum_export.py CHECKPOINT OUTPUT`"""

from __future__ import annotations

import json
import sys

from optimum.exporters.onnx import main_export

if __name__ == "__main__":
    main_export(sys.argv[1], sys.argv[2], task="text-generation", do_validation=False)
    print(json.dumps({"file": f"{sys.argv[2]}/model.onnx"}))
