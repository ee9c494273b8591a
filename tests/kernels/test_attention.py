"""The attention kernel: what GroupQueryAttention says, whatever the threads, the batch and how a prompt is cut."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.attention_call import CACHE_TYPES, Attend, Cache, Shape, compile_attention, expected, written


def has_avx512() -> bool:
    flags = Path("/proc/cpuinfo").read_text().split() if platform.machine() == "x86_64" else []
    return {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"} <= set(flags)


pytestmark = [
    pytest.mark.skipif(not has_avx512(), reason="no AVX-512 here"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here"),
]


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Attend]]:
    library = compile_attention(tmp_path_factory.mktemp("kernels") / "attention.so")
    pools = {threads: Attend(library, threads) for threads in (1, 2, 3)}
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture(scope="module")
def attend(pools: dict[int, Attend]) -> Attend:
    return pools[2]


def tokens(shape: Shape, batch: int, count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, count, shape.width), np.float32)


def at(*last: int) -> np.ndarray:
    return np.array(last, np.int32)


def check(attend: Attend, shape: Shape, cache: Cache, qkv: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Makes the call; the cache holds the new tokens and is otherwise untouched, and the answer is the reference's."""
    keys, values = written(shape, cache, qkv, last)
    before = cache.keys.copy(), cache.values.copy()
    mixed = attend(shape, cache, qkv, last)
    for got, want, old in zip((cache.keys, cache.values), (keys, values), before, strict=True):
        new = np.zeros(got.shape[:3], bool)
        for b, end in enumerate(last):
            new[b, :, max(0, end - qkv.shape[1] + 1) : end + 1] = True
        assert got[~new].tobytes() == old[~new].tobytes()
        if shape.cache == "i8":  # a quotient at half a code may fall on either side
            off = np.abs(got[new].astype(int) - want[new].astype(int))
            assert off.max() <= 1 and off.mean() < 1e-3
        else:
            close = 1e-6 if shape.cache == "f32" else 1e-3
            np.testing.assert_allclose(got[new].astype(float), want[new].astype(float), rtol=close, atol=close)
    np.testing.assert_allclose(mixed, expected(shape, cache, qkv, last), rtol=2e-5, atol=5e-6)
    return mixed


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (9, 3), (8, 2), (8, 1), (7, 1)])
def test_a_prompt_then_tokens(attend: Attend, heads: int, kv_heads: int, head_dim: int, cache_type: str) -> None:
    shape = Shape(heads, kv_heads, head_dim, context=320, cache=cache_type)
    cache = Cache(shape, 2)
    check(attend, shape, cache, tokens(shape, 2, 70), at(69, 69))
    check(attend, shape, cache, tokens(shape, 2, 1, 2), at(70, 70))
    check(attend, shape, cache, tokens(shape, 2, 190, 3), at(260, 260))
    check(attend, shape, cache, tokens(shape, 2, 5, 4), at(265, 265))
    check(attend, shape, cache, tokens(shape, 2, 1, 5), at(266, 266))


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("window", [1, 16, 100, 300, 1000])
def test_a_window(attend: Attend, window: int, cache_type: str) -> None:
    shape = Shape(window=window, cache=cache_type)
    cache = Cache(shape, 1)
    check(attend, shape, cache, tokens(shape, 1, 400), at(399))
    check(attend, shape, cache, tokens(shape, 1, 1, 2), at(400))
    check(attend, shape, cache, tokens(shape, 1, 4, 3), at(404))
    check(attend, shape, cache, tokens(shape, 1, 150, 4), at(554))


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_rows_of_different_lengths_and_padding_before_the_start(attend: Attend, cache_type: str) -> None:
    shape = Shape(cache=cache_type)
    cache = Cache(shape, 4)
    ends = at(299, 4, 0, 122)
    mixed = check(attend, shape, cache, tokens(shape, 4, 300), ends)
    assert not mixed[1, :295].any() and not mixed[2, :299].any() and mixed[2, 299:].any()
    for step in range(1, 4):
        check(attend, shape, cache, tokens(shape, 4, 1, step), ends + np.int32(step))
    check(attend, shape, cache, tokens(shape, 4, 6, 9), ends + np.int32(9))


def test_a_long_context_and_large_scores(attend: Attend) -> None:
    shape = Shape(context=3000)
    cache = Cache(shape, 1)
    check(attend, shape, cache, tokens(shape, 1, 2500), at(2499))
    large = tokens(shape, 1, 1, 2) * np.float32(30)
    keys = written(shape, cache, large, at(2500))[0]
    assert np.abs(keys[0, :, 2500]).max() > 60
    attend(shape, cache, large, at(2500))
    # scores of +-1000: float32 knows them to about 1e-4
    np.testing.assert_allclose(
        attend(shape, cache, large, at(2500)), expected(shape, cache, large, at(2500)), atol=1e-2
    )


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_to_the_bit_the_same_whatever_the_threads(pools: dict[int, Attend], cache_type: str) -> None:
    shape = Shape(cache=cache_type, context=1400)
    found = []
    for pool in pools.values():
        cache = Cache(shape, 2)
        steps = ((1000, 999), (1, 1000), (8, 1008), (40, 1048), (300, 1348))
        found.append([pool(shape, cache, tokens(shape, 2, count, last), at(last, last)) for count, last in steps])
        found[-1] += [cache.keys, cache.values]
    for other in found[1:]:
        assert [x.tobytes() for x in other] == [x.tobytes() for x in found[0]]


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("window", [0, 150])
def test_to_the_bit_the_same_however_a_prompt_is_cut(attend: Attend, window: int, cache_type: str) -> None:
    shape = Shape(window=window, cache=cache_type)
    qkv = tokens(shape, 1, 600)
    whole = Cache(shape, 1)
    mixed = attend(shape, whole, qkv, at(599))
    for cut in (1, 7, 33, 256):
        cache = Cache(shape, 1)
        pieces = [
            attend(shape, cache, np.ascontiguousarray(qkv[:, i : i + cut]), at(min(i + cut, 600) - 1))
            for i in range(0, 600, cut)
        ]
        assert np.concatenate(pieces, axis=1).tobytes() == mixed.tobytes(), cut
        assert cache.keys.tobytes() == whole.keys.tobytes() and cache.values.tobytes() == whole.values.tobytes()


def test_to_the_bit_the_same_alone_and_in_a_batch(attend: Attend) -> None:
    shape = Shape()
    ends = (500, 3, 255)
    many = Cache(shape, 3)
    alone = [Cache(shape, 1) for _ in ends]
    for count, step in ((4, 0), (1, 1), (30, 31)):
        qkv = tokens(shape, 3, count, step)
        if step == 0:
            for b, cache in enumerate(alone):
                many.keys[b, :, : ends[b]] = cache.keys[0, :, : ends[b]] = tokens(shape, 1, 1)[0, 0, :64]
                many.values[b, :, : ends[b]] = cache.values[0, :, : ends[b]] = tokens(shape, 1, 1)[0, 0, 64:128]
        mixed = attend(shape, many, qkv, at(*(end + step for end in ends)))
        for b, cache in enumerate(alone):
            single = attend(shape, cache, np.ascontiguousarray(qkv[b : b + 1]), at(ends[b] + step))
            assert single[0].tobytes() == mixed[b].tobytes()
