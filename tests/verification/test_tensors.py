"""One hash over all weights of a saved graph."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.quantization.columns import E4M3
from hermes_deploy.verification import tensors_sha256
from hermes_deploy.verification.tensors import saved_linears
from tests.verification.conftest import Build
from tests.verification.damage import damaged


def test_any_changed_bit_in_the_data_changes_the_hash(build: Build) -> None:
    path = build("int4-rtn", "cpu")
    before = tensors_sha256(path)
    assert before == tensors_sha256(path)
    linear = next(iter(saved_linears(path)))
    assert isinstance(linear.codes, ir.ExternalTensor)
    data = path.with_name(f"{path.name}.data")
    content = bytearray(data.read_bytes())
    content[(linear.codes.offset or 0) + 3] ^= 0x10
    data.write_bytes(content)
    assert tensors_sha256(path) != before


def test_where_the_file_keeps_the_weights_does_not_matter(build: Build, tmp_path: Path) -> None:
    path = build("fp32", "cpu")
    inside = tmp_path / "inside.onnx"
    ir.save(ir.load(path), inside)
    assert not inside.with_name("inside.onnx.data").exists()
    assert tensors_sha256(inside) == tensors_sha256(path)


def test_other_weights_and_other_precisions_have_other_hashes(tiny: Checkpoint, build: Build) -> None:
    hashes = {
        tensors_sha256(build(recipe, where))
        for recipe, where in (("fp32", "cpu"), ("int4-rtn", "cpu"), ("int4-rtn", "sm80"))
    }
    hashes.add(tensors_sha256(build("int4-rtn", "sm80", damaged(tiny, ("model.norm.weight",), lambda a: a + 1))))
    assert len(hashes) == 4


def test_linears_read_back_are_those_of_the_checkpoint(tiny: Checkpoint, build: Build) -> None:
    import numpy as np

    for recipe, where, close in (("fp32", "cpu", 0.0), ("int4-rtn", "sm80", 0.13), ("fp8", "sm89", 0.03)):
        linears = {linear.name: linear for linear in saved_linears(build(recipe, where))}
        linear = linears["layers.1.down"]
        stored = np.concatenate([slab for _, slab in linear.slabs()])
        wanted = tiny.tensors["model.layers.1.mlp.down_proj.weight"].float32().T
        assert np.linalg.norm(stored - wanted) <= close * np.linalg.norm(wanted)
        assert (np.asarray(linear.codes.numpy()).dtype == E4M3) == (recipe == "fp8")
