"""Runs in llama.cpp's environment: what SOURCE dequantizes to, quantized again.

llama_quantize.py SOURCE.gguf OUTPUT.gguf Q4_0|Q4_1|Q8_0
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    import llama_cpp

    source, output, kind = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize = True
    params.nthread = 2
    if code := llama_cpp.llama_model_quantize(source.encode(), output.encode(), params):
        sys.exit(f"llama_model_quantize gave {code}")
