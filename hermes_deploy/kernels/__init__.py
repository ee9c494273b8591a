"""Operators of our own for ONNX Runtime: the linears and the attention of a decoder, on x86-64 with AVX-512 VNNI.

`src/` is compiled when the package is installed. Where it was not, or the processor lacks the instructions, the graph
as ONNX Runtime runs it is opened instead, and `trouble()` says why. Imports onnxruntime and numpy, nothing of ours.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import onnxruntime as ort

FUSED = "fused.onnx"
"""The graph for these operators, beside the one that it was made from (`graphs.fused`); both read the same weights."""
DOMAIN = "hermes"

_Opened = TypeVar("_Opened")
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
    model: Path, options: ort.SessionOptions, threads: int, make: Callable[[Path], _Opened], *, use: bool = True
) -> tuple[_Opened, str]:
    """What `make` makes of the graph to open, and why it is not the fused one (empty when it is).

    `model`: the graph as ONNX Runtime runs it. `options` get the operators where they are used; `threads`: of the
    session. `use`: False to do without.
    """
    fused = model.with_name(FUSED)
    why = trouble() if use else "they are switched off"
    if not why and not fused.exists():
        why = "the artifact has no graph for them"
    found = library()
    if why or found is None:
        return make(model), why
    options.register_custom_ops_library(str(found))
    with _opening:  # the number of threads is taken by each kernel when it is made
        share(found, threads)
        return make(fused), ""


def share(found: Path, threads: int) -> None:
    """Kernels of sessions that are made from now on share their work over so many threads: those of the session."""
    ctypes.CDLL(str(found)).hermes_kernels_threads(threads)
