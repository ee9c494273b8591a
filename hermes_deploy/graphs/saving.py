"""The edge of graphs/: writes a model to disk. The only file of the room that touches files.

`model.onnx` and beside it `model.onnx.data`, one tensor at a time, so that peak memory is the
largest tensor. Same model, same bytes. Data offsets are multiples of 4096, so that ONNX Runtime maps
the weights instead of copying them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from hermes_deploy.errors import GraphError
from hermes_deploy.graphs.fused import fuse

_PAGE = 4096
_INLINE_BYTES = 256  # smaller tensors (shapes, scalars) stay in the model file

Progress = Callable[[str, int, int], None]
"""(tensor name, tensors written so far, tensors in all), called before each tensor is read."""


def save_model(model: ir.Model, path: Path, progress: Progress | None = None) -> None:
    """Writes `path` and `path` + ".data"; an existing pair is replaced.

    `model` stays as it was: its lazy weights are read again when it is saved again. Raises
    GraphError where the files cannot be written (a full disk, a folder that is not there).
    """

    end = 0

    def report(tensor: ir.TensorProtocol, info: ir.external_data.CallbackInfo) -> None:
        nonlocal end
        end = max(end, info.offset + tensor.nbytes)
        if progress is not None:
            progress(tensor.name or "", info.index, info.total)

    try:
        ir.save(
            model,
            path,
            external_data=f"{path.name}.data",
            size_threshold_bytes=_INLINE_BYTES,
            alignment=_PAGE,
            align_threshold=_INLINE_BYTES,
            callback=report,
        )
        _check_whole(path.with_name(f"{path.name}.data"), end)
    except OSError as error:
        raise GraphError(f"{path} cannot be written: {error}. Free space or choose another folder.") from error


def save_fused(model: Path, path: Path) -> bool:
    """Writes the saved `model` for the operators of `kernels` as `path`, beside it; both then read the same data.

    False, and nothing is written, where they can take no part of it. Raises GraphError as `save_model`.
    """
    try:
        graph = ir.load(model)
        if not fuse(graph):
            return False
        ir.save(graph, path)
    except OSError as error:
        raise GraphError(f"{path} cannot be written: {error}. Free space or choose another folder.") from error
    return True


def _check_whole(data: Path, end: int) -> None:
    """Raises OSError when the last bytes are missing: numpy's `tofile` does not tell when they find no room."""
    size = data.stat().st_size if end else 0
    if size < end:
        raise OSError(errno.ENOSPC, f"{size:,} of {end:,} bytes were written", str(data))
