"""What calibration leaves for the quantizer, as a file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization import Preparation


def some_preparation() -> Preparation:
    return Preparation(
        scales={"layers.0.qkv": np.asarray([0.5, 2.0], np.float32)},
        largest={"layers.0.qkv": 3.25, "head": 0.1},
        power={"head": np.asarray([1.0, 0.0], np.float32)},
        kept={"layers.10.down": "8-bit activations lose 31 % of its output"},
        chats=3,
        tokens=400,
        directions={"head": np.asarray([[1.0, -0.5], [0.0, 0.25]], np.float32)},
    )


def test_a_preparation_comes_back_from_its_file(tmp_path: Path) -> None:
    made = some_preparation()
    made.save(tmp_path / "p.npz")
    read = Preparation.load(tmp_path / "p.npz")
    assert (read.largest, read.kept, read.chats, read.tokens) == (made.largest, made.kept, 3, 400)
    assert (
        read.scales["layers.0.qkv"] == made.scales["layers.0.qkv"]
    ).all() and read.scales.keys() == made.scales.keys()
    assert (read.power["head"] == made.power["head"]).all() and read.power.keys() == made.power.keys()


def test_the_same_preparation_gives_the_same_bytes(tmp_path: Path) -> None:
    made = some_preparation()
    turned = Preparation(
        made.scales, dict(reversed(made.largest.items())), made.power, made.kept, 3, 400, made.directions
    )
    made.save(tmp_path / "a")
    turned.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "not an archive", "compressed", "pickle", "strange entry", "negative scale"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    some_preparation().save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "not an archive":
        path.write_bytes(b"zeros")
    elif damage == "compressed":
        np.savez_compressed(path, counts=np.asarray([1, 1]))
    elif damage == "pickle":
        np.savez(path, counts=np.asarray([1, 1]), **{"power/head": np.asarray([{}], dtype=object)})  # type: ignore[arg-type]
    elif damage == "strange entry":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("power/../../x.npy", b"")
    else:
        np.savez(path, counts=np.asarray([1, 1]), **{"scales/layers.0.o": np.asarray([-1], np.float32)})  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="is no preparation"):
        Preparation.load(path)
