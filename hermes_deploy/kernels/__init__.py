"""Operators of our own for ONNX Runtime: the linears and the attention of a decoder, on x86-64 with AVX-512 VNNI.

`src/` is compiled when the package is installed. Where it was not, or the processor lacks the instructions, the graph
as ONNX Runtime runs it is opened instead, and `trouble()` says why. Imports nothing of ours; onnxruntime only to open.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime as ort

FUSED = "fused.onnx"
"""The graph for these operators, beside the one that it was made from (`graphs.fused`); both read the same weights."""
DOMAIN = "hermes"
MOST_HEAD_DIM = 256
FACT = "kernels"
"""Key in the metadata of that graph: whose operators compute, WHOLE or PARTLY ours."""
WHOLE, PARTLY = "hermes", "hermes and ONNX Runtime"
"""WHOLE: no attention and no coded weight or activation is left to others, so a row's bits do not depend on what
stands beside it. (Plain float products may be; what they round otherwise is a millionth.)"""

_opening = threading.Lock()


def library() -> Path | None:
    """The compiled operators, None where they were not compiled."""
    return next(iter(sorted(Path(__file__).parent.glob("operators.*.so"))), None)


@functools.cache
def trouble() -> str:
    """Why the operators cannot be used on this machine, and what to do; empty when they can."""
    found = library()
    if found is None:
        return "they were not compiled; install a C++ compiler (g++) and run pip install on hermes-deploy again"
    try:
        supported = ctypes.CDLL(str(found)).hermes_kernels_supported()
    except (OSError, AttributeError) as error:
        return f"{found.name} cannot be loaded: {error}; run pip install on hermes-deploy again"
    return "" if supported else "this processor has no AVX-512 VNNI, which they are written for"


def open_graph(
    model: Path, options: ort.SessionOptions, *, own_kernels: bool = True
) -> tuple[ort.InferenceSession, str]:
    """A CPU session of the fused graph beside `model`, else of `model`, and why it is not the fused one (else empty).

    `options` say the number of threads, and get the operators where these are used. Raises what ONNX Runtime raises.
    """
    import onnxruntime as ort

    providers, fused, found = ["CPUExecutionProvider"], model.with_name(FUSED), library()
    why = trouble() if own_kernels else "they are switched off"
    if not why and not fused.exists():
        why = "the artifact has no graph for them"
    if why or found is None:
        return ort.InferenceSession(str(model), options, providers=providers), why
    options.register_custom_ops_library(str(found))
    with _opening:  # the number of threads is taken by each kernel when it is made
        share(found, options.intra_op_num_threads)
        return ort.InferenceSession(str(fused), options, providers=providers), ""


def share(found: Path, threads: int) -> None:
    """Kernels of sessions that are made from now on share their work over so many threads: those of the session."""
    ctypes.CDLL(str(found)).hermes_kernels_threads(threads)
