"""Says no to weights that are already quantized, whichever tool wrote them and wherever it says so.

Quantizing twice adds two errors, and the gate would compare with the damaged weights. A GGUF is the one
quantized form that is read: it is what many models are published as, and every report names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hermes_deploy.errors import CheckpointError

# `quantization`: MLX; `compression_config`: compressed-tensors before 0.6
_KEYS = ("quantization_config", "quantization", "compression_config")
_FILES = {
    "quantize_config.json": "AutoGPTQ",
    "quant_config.json": "AutoAWQ",
    "hf_quant_config.json": "NVIDIA ModelOpt",
}
_TITLES = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "EETQ",
    "exl2": "ExLlamaV2",
    "fbgemm_fp8": "FBGEMM FP8",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "hqq": "HQQ",
    "modelopt": "NVIDIA ModelOpt",
    "mxfp4": "MXFP4",
    "quanto": "Quanto",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
_DEEPEST = 8
INSTEAD = "give the original fp16/bf16 checkpoint (build quantizes it: --recipe) or a GGUF"


def refuse_quantized_config(data: Mapping[str, Any], where: str) -> None:
    """`data` is config.json, looked through with its nested parts. Raises CheckpointError."""
    for path, value in _settings(data, "", 0):
        method = value.get("quant_method") if isinstance(value, Mapping) else None
        known = _TITLES.get(method.lower(), "not known here") if isinstance(method, str) else None
        what = f"quant_method {method!r} ({known})" if known else str(value)[:80]
        raise CheckpointError(f"{where}: the weights are already quantized: {path} says {what}; {INSTEAD}")


def refuse_quantized_folder(folder: Path) -> None:
    """Looks for the files that quantizers leave beside config.json. Raises CheckpointError."""
    for name, tool in _FILES.items():
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder}: the weights are already quantized: {name} is what {tool} writes; {INSTEAD}. "
                "If it was only left behind, remove it."
            )


def _settings(data: Mapping[str, Any], path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every quantization setting that is not null."""
    for key, value in data.items():
        if key in _KEYS and value is not None:
            yield path + key, value
        elif isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _settings(value, f"{path}{key}.", depth + 1)
