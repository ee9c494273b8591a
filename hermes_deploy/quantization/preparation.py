"""What calibration found, ready to quantize with: scales to fold, ranges, importance, exceptions.

Made by `calibration.prepare`, used by `quantize`; the one thing that a build keeps between the two.
As a file it is an npz without pickles, and the same preparation gives the same bytes.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization.equalize import Float, fold

MAX_FILE_BYTES = 1 << 30
"""A 7B takes 120 MB."""

_KINDS = ("scales", "power", "directions", "largest", "kept", "cache")

_LINEAR = re.compile(r"head|layers\.\d{1,4}\.(qkv|o|gate_up|down)")
_CACHE = re.compile(r"layers\.\d{1,4}\.(key|value)")


@dataclass(frozen=True)
class Preparation:
    """By linear ("layers.0.qkv"), over `tokens` positions of `chats` chats:

    `scales` [K], what its inputs are divided by; `tensors` folds them. Absent means 1.
    `largest`: the bound of |input| that a static activation quantizer uses, after folding.
    `power` [K]: the mean square of each input, after folding: how much its weights matter.
    `kept`: why a linear stays in the activation precision.
    `directions` [K, rank]: in which its inputs move together, after folding (see `compensate`).

    And by cache ("layers.0.key", "layers.0.value"), for a recipe that keeps it in 8 bits:
    `cache` [kv_heads, head_dim]: the scale of each channel's codes, after folding (see `cache_scales`).
    """

    scales: Mapping[str, Float]
    largest: Mapping[str, float]
    power: Mapping[str, Float]
    kept: Mapping[str, str]
    chats: int
    tokens: int
    directions: Mapping[str, Float] = field(default_factory=dict)
    cache: Mapping[str, Float] = field(default_factory=dict)

    def tensors(self, config: DecoderConfig, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """The same model with the scales folded in. Raises as `equalize.fold`."""
        return fold(config, tensors, self.scales)

    def save(self, path: Path) -> None:
        """Writes exactly `path`, whatever its suffix."""
        arrays: dict[str, npt.NDArray[Any]] = {"counts": np.asarray([self.chats, self.tokens], dtype=np.int64)}
        arrays |= {f"scales/{name}": self.scales[name] for name in sorted(self.scales)}
        arrays |= {f"power/{name}": self.power[name] for name in sorted(self.power)}
        arrays |= {f"directions/{name}": self.directions[name] for name in sorted(self.directions)}
        arrays |= {f"largest/{name}": np.asarray(self.largest[name], np.float64) for name in sorted(self.largest)}
        arrays |= {f"kept/{name}": np.frombuffer(self.kept[name].encode(), np.uint8) for name in sorted(self.kept)}
        arrays |= {f"cache/{name}": self.cache[name] for name in sorted(self.cache)}
        with path.open("wb") as file:
            np.savez(file, **arrays)

    @staticmethod
    def load(path: Path) -> Preparation:
        """Raises QuantizationError for a file that `save` did not write so."""
        try:
            _check_archive(path)
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise QuantizationError(f"{path} is no preparation: {error}. Build again with --no-cache.") from None
        groups: dict[str, dict[str, npt.NDArray[Any]]] = {kind: {} for kind in _KINDS}
        counts = found.pop("counts", None)
        for key, array in found.items():
            kind, _, name = key.partition("/")
            named = _CACHE if kind == "cache" else _LINEAR
            if kind not in groups or not named.fullmatch(name) or not _holds(kind, array):
                raise QuantizationError(f"{path} is no preparation: entry {key!r}. Build again with --no-cache.")
            groups[kind][name] = array
        if counts is None or counts.shape != (2,) or counts.dtype != np.int64:
            raise QuantizationError(f"{path} is no preparation: it has no counts. Build again with --no-cache.")
        return Preparation(
            scales=groups["scales"],
            largest={name: float(value) for name, value in groups["largest"].items()},
            power=groups["power"],
            kept={name: bytes(text).decode("utf-8", "replace") for name, text in groups["kept"].items()},
            chats=int(counts[0]),
            tokens=int(counts[1]),
            directions=groups["directions"],
            cache=groups["cache"],
        )


def _check_archive(path: Path) -> None:
    """Before numpy reads: nothing compressed (a few bytes could unpack to any size), nothing huge."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES >> 20} MiB")
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed")


def _holds(kind: str, array: npt.NDArray[Any]) -> bool:
    if kind == "kept":
        return array.ndim == 1 and array.dtype == np.uint8
    if kind == "largest":
        return array.ndim == 0 and array.dtype == np.float64 and bool(np.isfinite(array) and array >= 0)
    if kind == "directions":
        return array.ndim == 2 and array.dtype == np.float32 and bool(np.isfinite(array).all())
    if kind == "cache":
        return array.ndim == 2 and array.dtype == np.float32 and bool(np.isfinite(array).all() and (array > 0).all())
    if array.ndim != 1 or array.dtype != np.float32 or not np.isfinite(array).all():
        return False
    return bool((array > 0).all()) if kind == "scales" else bool((array >= 0).all())
