"""The linear operators, run by ONNX Runtime: the product of coded activations, each row by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from hermes_deploy import kernels

pytestmark = pytest.mark.skipif(bool(kernels.trouble()), reason=kernels.trouble() or "they can be used")

Floats = npt.NDArray[np.float32]
EPSILON = 1e-5


@dataclass(frozen=True)
class Weight:
    """codes [K, N] from 0 to 15 (4 bits) or -128 to 127; scales and zero points [K / block, N]."""

    bits: int
    codes: npt.NDArray[np.int64]
    scales: Floats
    zeros: npt.NDArray[np.int64]

    @property
    def value(self) -> npt.NDArray[np.float64]:
        block = len(self.codes) // len(self.scales)
        return (self.codes - self.zeros.repeat(block, 0)) * self.scales.repeat(block, 0).astype(np.float64)


def weight(rows: int, columns: int, block: int, bits: int, seed: int = 0) -> Weight:
    random = np.random.default_rng(seed)
    low, high = (0, 16) if bits == 4 else (-128, 128)
    zeros = random.integers(0, 16, (rows // block, columns)) if bits == 4 else np.zeros((rows // block, columns), int)
    scales = random.uniform(0.5, 2, (rows // block, columns)).astype(np.float32) / 100
    return Weight(bits, random.integers(low, high, (rows, columns)), scales, zeros)


def initializer(name: str, bits: int, values: npt.NDArray[np.int64]) -> TensorProto:
    if bits == 4:
        pairs = values.reshape(-1, 2)
        packed = (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes()
        return helper.make_tensor(name, TensorProto.UINT4, values.shape, packed, raw=True)
    return helper.make_tensor(name, TensorProto.INT8, values.shape, values.astype(np.int8).tobytes(), raw=True)


def session(w: Weight, *, gated: bool = False, norm: Floats | None = None, threads: int = 2) -> ort.InferenceSession:
    rows, columns = w.codes.shape
    constants = [
        initializer("w", w.bits, w.codes),
        helper.make_tensor("s", TensorProto.FLOAT, w.scales.shape, w.scales.tobytes(), raw=True),
    ]
    if w.bits == 4:
        constants.append(initializer("z", 4, w.zeros))
    before = [] if norm is None else ["r", "n"]
    if norm is not None:
        constants.append(helper.make_tensor("n", TensorProto.FLOAT, norm.shape, norm.tobytes(), raw=True))
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", rows]) for name in ("x", "r", "t")]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", columns // 2 if gated else columns])
    names = ["w", "s", "z"][: 3 if w.bits == 4 else 2]
    node = helper.make_node(
        f"{'' if norm is None else 'AddNorm'}Linear{w.bits}",
        ["x", *before, *names],
        ["y"] if norm is None else ["y", "t"],
        domain="hermes",
        gated=int(gated),
        **({} if norm is None else {"epsilon": EPSILON}),
    )
    graph = helper.make_graph(
        [node], "one", floats[: 1 if norm is None else 2], [y] if norm is None else [y, floats[2]], constants
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("hermes", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    library = kernels.library()
    assert library is not None
    options.register_custom_ops_library(str(library))
    kernels.share(library, threads)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def coded(x: Floats) -> npt.NDArray[np.float64]:
    """What the operators make of activations: int8 with a scale for each 32 of a row."""
    groups = x.reshape(len(x), -1, 32).astype(np.float64)
    steps = np.abs(groups).max(-1, keepdims=True) / 127
    return (np.rint(groups / np.where(steps == 0, 1, steps)) * steps).reshape(x.shape)


def inputs(rows: int, width: int, seed: int = 1) -> Floats:
    x = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    x[:, 3] *= 200  # a channel that is louder than the rest, as models have them
    return x


def close(found: Any, wanted: npt.NDArray[np.float64]) -> None:
    # a quotient at half a code may fall on either side: one code of one channel
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("rows", "columns", "block"),
    [(64, 32, 32), (96, 960, 32), (256, 64, 64), (512, 32, 128), (96, 18, 32), (64, 33, 32)],
)
@pytest.mark.parametrize("count", [1, 2, 5, 12, 13, 40])
def test_a_linear_is_the_product_with_the_dequantized_weight(
    rows: int, columns: int, block: int, bits: int, count: int
) -> None:
    w, x = weight(rows, columns, block, bits), inputs(count, rows)
    close(session(w).run(None, {"x": x})[0], coded(x) @ w.value)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_gated_linear_is_silu_of_one_half_times_the_other(bits: int) -> None:
    w, x = weight(128, 192, 32, bits), inputs(7, 128) / 8
    product = coded(x) @ w.value
    gate, up = product[:, :96], product[:, 96:]
    close(session(w, gated=True).run(None, {"x": x})[0], gate / (1 + np.exp(-gate)) * up)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 33])
def test_the_residual_is_added_and_the_sum_normed_before(bits: int, count: int) -> None:
    w, x, residual = weight(64, 64, 32, bits), inputs(count, 64), inputs(count, 64, seed=2)
    norm = np.random.default_rng(3).uniform(0.5, 1.5, 64).astype(np.float32)
    y, total = session(w, norm=norm).run(None, {"x": x, "r": residual})
    assert total.tobytes() == (x + residual).tobytes()
    wide = total.astype(np.float64)
    normed = (wide / np.sqrt((wide**2).mean(-1, keepdims=True) + EPSILON) * norm).astype(np.float32)
    close(y, coded(normed) @ w.value)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("gated", [False, True])
def test_a_row_has_the_same_bits_whatever_stands_beside_it_and_whoever_computes_it(bits: int, gated: bool) -> None:
    w, x = weight(96, 160, 32, bits), inputs(50, 96)
    norm = np.ones(96, np.float32)
    runs = [session(w, gated=gated, norm=norm, threads=threads) for threads in (1, 2, 3)]
    whole = [run.run(None, {"x": x, "r": x[::-1].copy()}) for run in runs]
    assert all(y.tobytes() == whole[0][0].tobytes() for y, _ in whole)
    for first, last in ((0, 1), (3, 5), (10, 22), (10, 23), (49, 50)):
        y, _ = runs[1].run(None, {"x": x[first:last], "r": x[::-1][first:last].copy()})
        assert y.tobytes() == whole[0][0][first:last].tobytes()


def test_rows_of_zeros_and_no_rows_at_all() -> None:
    run = session(weight(64, 32, 32, 4))
    assert not run.run(None, {"x": np.zeros((3, 64), np.float32)})[0].any()
    assert run.run(None, {"x": np.zeros((0, 64), np.float32)})[0].shape == (0, 32)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    w, x = weight(64, 32, 32, 4), inputs(3, 64)
    run = session(w)
    well = run.run(None, {"x": x})[0]
    x[1, 40] = bad
    ill = run.run(None, {"x": x})[0]
    assert not np.isfinite(ill[1]).any()
    assert ill[[0, 2]].tobytes() == well[[0, 2]].tobytes()


def test_a_weight_that_the_operator_does_not_take_is_refused_in_words() -> None:
    w = weight(96, 32, 48, 4)
    with pytest.raises(Exception, match="block a multiple of 32"):
        session(w)


def test_an_input_of_another_width_is_refused_in_words() -> None:
    with pytest.raises(Exception, match=r"Got: 32 Expected: 64|to be float \[\.\.\., K\]"):
        session(weight(64, 32, 32, 4)).run(None, {"x": np.zeros((1, 32), np.float32)})
