"""What a step reads of a model, from its files: bytes of weights, and of keys and values of one token."""

from __future__ import annotations

from pathlib import Path

from hermes_deploy.benchmarking.rivals import Precision
from hermes_deploy.benchmarking.roofline import Reads
from hermes_deploy.checkpoints.checkpoint import DecoderConfig

_LOOKED_UP = ("Gather", "GatherBlockQuantized")
"""Read a row of their table, not all of it."""


def of_onnx(path: Path, config: DecoderConfig) -> tuple[Precision, Reads]:
    """Of a decoder graph of ours or of onnxruntime-genai's. Raises ValueError for one without 4- or 8-bit linears."""
    import onnx_ir as ir

    graph = ir.load(path).graph
    read, linears = {}, []
    for node in graph:
        for value in node.inputs:
            if value is not None and value.name in graph.initializers and node.op_type not in _LOOKED_UP:
                read[value.name] = value.const_value.nbytes
        if node.op_type == "MatMulNBits":
            linears.append((node.attributes["bits"].as_int(), node.attributes["block_size"].as_int()))
        elif node.op_type == "DequantizeLinear":
            block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else None
            linears.append((node.inputs[0].const_value.dtype.bitwidth, block or None))
    if not linears:
        raise ValueError(f"{path} has no quantized linears; this comparison knows what those read")
    cache = next(value.dtype.bitwidth // 8 for value in graph.inputs if value.name.startswith("past"))
    (bits, block), (head_bits, head_block) = linears[0], linears[-1]
    return Precision(bits, block, head_bits, head_block), Reads(sum(read.values()), cache_token(config, cache))


def of_gguf(path: Path) -> int:
    """Bytes of all tensors."""
    from gguf import GGUFReader

    return sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)


def cache_token(config: DecoderConfig, value_bytes: int) -> int:
    """Bytes of keys and values of one token, `value_bytes` each."""
    return 2 * config.layers * config.kv_heads * config.head_dim * value_bytes
