"""A damaged safetensors file is refused, or what is read is what was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from hermes_deploy.checkpoints.fingerprint import sha256_files
from hermes_deploy.checkpoints.safetensors_file import read_safetensors
from hermes_deploy.errors import CheckpointError

ARRAYS = {
    "model.layers.0.a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "model.layers.1.a": np.arange(12, 24, dtype=np.float32).reshape(3, 4),
    "model.layers.0.b": np.arange(6, dtype=np.float16),
    "model.layers.1.b": np.arange(6, 12).astype(ml_dtypes.bfloat16),
}
DATA = save(ARRAYS)
HEADER = 8 + int.from_bytes(DATA[:8], "little")


def read(path: Path, data: bytes) -> dict[str, Any]:
    path.write_bytes(data)
    return {name: tensor.load() for name, tensor in read_safetensors(path).items()}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    found = read(tmp_path / "x", DATA)
    assert {name: array.dtype for name, array in found.items()} == {n: a.dtype for n, a in ARRAYS.items()}
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(byte=st.integers(0, HEADER - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_of_the_header_gives_other_numbers_under_a_known_name(
    byte: int, bit: int, tmp_path: Path
) -> None:
    data = bytearray(DATA)
    data[byte] ^= 1 << bit
    try:
        found = read(tmp_path / "x", bytes(data))
    except CheckpointError:
        return
    # A name may have become another one (the decoder then misses a tensor), but no name lies.
    assert all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS.keys() & found.keys())
    assert len(found) == len(ARRAYS)


@pytest.mark.parametrize("size", [0, 7, 8, 9, HEADER - 1, HEADER, len(DATA) - 1])
def test_a_file_that_is_cut_off_is_refused(size: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x cannot be read|not an intact safetensors file"):
        read(tmp_path / "x", DATA[:size])


def test_a_file_with_something_behind_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the file holds"):
        read(tmp_path / "x", DATA + b"\0")


def with_header(entries: dict[str, Any], data: bytes) -> bytes:
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 40]}, "does not fill bytes"),
        ({"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}, "the file holds 8"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "data_offsets"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "has shape"),
        ({"dtype": "F32", "shape": [2, 0], "data_offsets": [0, 0]}, "has shape"),
        ({"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}, "has shape"),
        ({"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}, "F8_E4M3; weights may be: F32, F16, BF16"),
        ({"dtype": "F32", "shape": [2]}, "is not dtype, shape and data_offsets"),
        (7, "is not dtype, shape and data_offsets"),
    ],
)
def test_a_header_that_points_anywhere_else_is_refused(entry: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "x", with_header({"a": entry}, b"\0" * 8))


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'
    header = ("{" + entry % (0, 4) + "," + entry % (4, 8) + "}").encode()
    with pytest.raises(CheckpointError, match="a name occurs twice"):
        read(tmp_path / "x", len(header).to_bytes(8, "little") + header + b"\0" * 8)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers_are_refused_when_loaded(name: str, value: float, tmp_path: Path) -> None:
    arrays = {key: array.copy() for key, array in ARRAYS.items()}
    arrays[name].flat[1] = value
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinite weights"):
        read(tmp_path / "x", save(arrays))


def test_a_changed_weight_is_found_where_the_hubs_cache_names_its_sha256(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    blob = blobs / hashlib.sha256(DATA).hexdigest()
    blob.write_bytes(DATA)
    link = snapshot / "model.safetensors"
    link.symlink_to(blob)
    sha256_files([("model.safetensors", link)])
    blob.write_bytes(DATA[:-1] + b"\1")
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged: .* Delete .* downloaded anew"):
        sha256_files([("model.safetensors", link)])
