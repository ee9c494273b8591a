"""attend() of hermes_deploy/kernels, compiled once and called through ctypes; and the same in numpy, in float64."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
SOURCES = (Path(__file__).parent / "attention_entry.cpp", ROOT / "hermes_deploy/kernels/src/attention.cpp")
# gcc 12 warns of its own AVX-512 headers
WARNINGS = ("-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Werror")
VECTORS = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mf16c", "-mfma", "-ffp-contract=off")
CACHE_TYPES = {"f32": np.float32, "f16": np.float16, "i8": np.int8}


def compile_attention(library: Path) -> ctypes.CDLL:
    flags = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", *VECTORS, *WARNINGS)
    subprocess.run(["g++", *flags, *map(str, SOURCES), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.pool_open.restype = ctypes.c_void_p
    return loaded


@dataclass(frozen=True)
class Shape:
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    context: int = 640
    window: int = 0
    cache: str = "f32"

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def scale(self) -> float:
        return 1 / self.head_dim**0.5


class Cache:
    """Keys and values of `batch` rows, [batch, kv_heads, context, head_dim], all bits set where nothing is written.

    All bits set is NaN in both float types.
    """

    def __init__(self, shape: Shape, batch: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        sizes = (batch, shape.kv_heads, shape.context, shape.head_dim)
        kind = CACHE_TYPES[shape.cache]
        self.keys = np.full(sizes, 0xFF, np.uint8).repeat(np.dtype(kind).itemsize, axis=-1).view(kind)
        self.values = self.keys.copy()
        self.key_scale, self.value_scale = (
            random.uniform(0.02, 0.04, (shape.kv_heads, shape.head_dim)).astype(np.float32) for _ in "kv"
        )
        angles = np.outer(np.arange(shape.context), 1e4 ** -np.linspace(0, 1, shape.head_dim // 2, endpoint=False))
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


class Attend:
    """Calls the library with a pool of `threads`."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self.library, self.threads = library, threads
        self.pool = ctypes.c_void_p(library.pool_open(threads))

    def close(self) -> None:
        self.library.pool_close(self.pool)

    def prepare(self, shape: Shape, cache: Cache, qkv: np.ndarray, last: np.ndarray, mixed: np.ndarray) -> Any:
        """A function without arguments that makes the call; it holds its arrays."""
        batch, tokens, width = qkv.shape
        assert width == shape.width and last.dtype == np.int32 and qkv.dtype == mixed.dtype == np.float32
        kind = list(CACHE_TYPES).index(shape.cache)
        sizes = (shape.heads, shape.kv_heads, shape.head_dim, shape.context, shape.window, kind, batch, tokens)
        arrays = (qkv, cache.cos, cache.sin, last, cache.keys, cache.values, cache.key_scale, cache.value_scale, mixed)
        assert all(array.flags.c_contiguous for array in arrays)
        held = (ctypes.c_int64 * 8)(*sizes)
        pointers = tuple(ctypes.c_void_p(array.ctypes.data) for array in arrays)
        scale = ctypes.c_float(shape.scale)

        def call(_: Any = arrays) -> None:
            self.library.attend(held, scale, *pointers, self.pool, self.threads)

        return call

    def __call__(self, shape: Shape, cache: Cache, qkv: np.ndarray, last: np.ndarray) -> np.ndarray:
        """qkv [batch, tokens, width] and the position of each row's last token: mixed, and the cache is written."""
        mixed = np.full((*qkv.shape[:2], shape.heads * shape.head_dim), np.nan, np.float32)
        self.prepare(shape, cache, qkv, last, mixed)()
        return mixed


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    low, high = np.split(x.astype(np.float64), 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def written(shape: Shape, cache: Cache, qkv: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copies of keys and values with the new tokens in them."""
    keys, values = cache.keys.copy(), cache.values.copy()
    tokens, dim = qkv.shape[1], shape.head_dim
    for b, end in enumerate(last):
        at = np.arange(max(0, end - tokens + 1), end + 1)
        new = qkv[b, tokens - len(at) :].reshape(len(at), -1, dim).swapaxes(0, 1)[shape.heads :]
        key, value = rotate(new[: shape.kv_heads], cache.cos[at], cache.sin[at]), new[shape.kv_heads :]
        if shape.cache == "i8":
            scales = cache.key_scale[:, None], cache.value_scale[:, None]
            key, value = (np.clip(np.rint(x / scale), -128, 127) for x, scale in zip((key, value), scales, strict=True))
        keys[b, :, at[0] : end + 1], values[b, :, at[0] : end + 1] = key, value
    return keys, values


def expected(shape: Shape, cache: Cache, qkv: np.ndarray, last: np.ndarray) -> np.ndarray:
    """mixed of a call whose tokens the cache already holds, float64."""
    batch, tokens, _ = qkv.shape
    dim, group = shape.head_dim, shape.heads // shape.kv_heads
    mixed = np.zeros((batch, tokens, shape.heads, dim))
    for b, end in enumerate(last):
        at = np.arange(max(0, end - tokens + 1), end + 1)
        places = np.arange(end + 1)
        seen = places <= at[:, None]
        if shape.window > 0:
            seen &= places > at[:, None] - shape.window
        new = qkv[b, tokens - len(at) :].reshape(len(at), -1, dim)
        for head in range(shape.heads):
            kv = head // group
            queries = rotate(new[:, head], cache.cos[at], cache.sin[at])
            keys, values = (x[b, kv, : end + 1].astype(np.float64) for x in (cache.keys, cache.values))
            if shape.cache == "i8":
                keys, values = keys * cache.key_scale[kv], values * cache.value_scale[kv]
            scores = np.where(seen, queries @ keys.T * shape.scale, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[b, tokens - len(at) :, head] = weights @ values / weights.sum(axis=1, keepdims=True)
    return mixed.reshape(batch, tokens, -1)
