"""What cannot be had is said before any work; what TensorRT refuses is said in its own words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import pytest

from hermes_deploy import machine
from hermes_deploy.engines import Profile, Range, build_engine, check_available, flavour_for
from hermes_deploy.engines import serving_profiles as profiles
from hermes_deploy.errors import EngineError, TargetError
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target
from tests.engines.conftest import ALL, Build
from tests.engines.decoder_onnx import Decoder, write_decoder


def test_all_rtx_targets_share_one_engine_and_cpu_needs_none() -> None:
    found = check_available([target(name) for name in ("cpu", *ALL)], load_recipe("int4-rtn"))
    assert [(g.flavour, [t.name for t in g.targets]) for g in found.groups] == [("tensorrt_rtx", list(ALL))]
    assert found.groups[0].version.startswith("1.")


def test_fp8_on_sm86_is_refused_with_what_would_work() -> None:
    with pytest.raises(TargetError, match=r"'sm86'.*sm86 takes: fp16, int4-awq.*'fp8' works on: sm89, sm90, sm120"):
        check_available([target("sm89"), target("sm86")], load_recipe("fp8"))


def test_fp8_on_sm86_is_refused_by_build_engine_too(tmp_path: Path) -> None:
    onnx = write_decoder(tmp_path, Decoder("fp8"))
    with pytest.raises(TargetError, match="sm86"):
        build_engine(onnx, [target("sm86")], tmp_path / "engine", recipe=load_recipe("fp8"), profiles=profiles(32, 4))
    assert not (tmp_path / "engine").exists()


def test_sm90_without_full_tensorrt_says_what_is_needed_and_what_works_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(TargetError) as refusal:
        check_available([target("sm90")], load_recipe("fp16"))
    said = str(refusal.value)
    assert "'sm90'" in said
    assert "hermes-deploy[tensorrt-full]" in said
    assert "Targets that work on this machine: cpu, cuda, sm80, sm86, sm89, sm120" in said


@pytest.mark.parametrize(("found", "said"), [((), "no NVIDIA GPU was found"), (((8, 9),), "compute capability 8.9")])
def test_sm90_with_full_tensorrt_but_not_its_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: tuple[tuple[int, int], ...], said: str
) -> None:
    monkeypatch.setattr(machine, "tensorrt_package", lambda _: machine.Package("11.4"))
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("a card", capability) for capability in found])
    with pytest.raises(TargetError, match=f"only on the GPU itself.*9.0.*{said}"):
        check_available([target("sm90")], load_recipe("fp16"))


def test_sm90_with_full_tensorrt_on_its_gpu_is_an_engine_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "tensorrt_package", lambda _: machine.Package("11.4"))
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("NVIDIA H100", (9, 0))])
    found = check_available([target(name) for name in ("sm90", "sm89", "sm120")], load_recipe("fp8"))
    assert [(g.flavour, [t.name for t in g.targets]) for g in found.groups] == [
        ("tensorrt_rtx", ["sm89", "sm120"]),
        ("tensorrt", ["sm90"]),
    ]
    with pytest.raises(TargetError, match="cannot share one engine"):
        flavour_for([target("sm89"), target("sm90")])


def test_without_tensorrt_the_pip_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine.FLAVOURS:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TargetError, match=r"tensorrt_rtx is not installed \(pip install 'hermes-deploy\[tensorrt\]'\)"):
        check_available([target("sm86")], load_recipe("int4-rtn"))


def test_a_tensorrt_that_cannot_be_imported_is_refused_with_the_library_that_it_misses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "tensorrt"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libnvonnxparser.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(machine, "_try_import", machine._try_import.__wrapped__)
    with pytest.raises(TargetError, match=r"cannot be imported: ImportError: libnvonnxparser\.so\.11"):
        check_available([target("sm90")], load_recipe("fp16"))


def test_doctor_and_build_say_the_same_about_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    rows = {check.what: check for check in machine.examine()}
    assert rows["target sm89"].state == "ok"
    assert rows["target sm90"].state == "missing"
    with pytest.raises(TargetError) as refusal:
        check_available([target("sm90")], load_recipe("fp16"))
    assert rows["target sm90"].advice in str(refusal.value)


def test_doctor_calls_a_tensorrt_that_cannot_be_imported_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(machine, "_try_import", machine._try_import.__wrapped__)
    row = next(check for check in machine.examine() if check.what == "tensorrt")
    assert row.state == "broken"
    assert "libnvinfer.so.11" in row.found


def test_the_gpus_are_those_that_the_driver_reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA L4, 8.9'\necho 'NVIDIA H100 80GB HBM3, 9.0'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(machine, "gpus", machine.gpus.__wrapped__)
    assert [gpu.compute_capability for gpu in machine.gpus()] == [(8, 9), (9, 0)]
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    assert machine.gpus() == ()


def test_an_onnx_runtime_target_has_no_tensorrt_engine(tmp_path: Path) -> None:
    onnx = write_decoder(tmp_path, Decoder())
    with pytest.raises(TargetError, match=r"'cpu' runs on ONNX Runtime.*sm80, sm86, sm89, sm90, sm120"):
        build_engine(onnx, [target("cpu")], tmp_path / "e", recipe=load_recipe("int4-rtn"), profiles=profiles(32, 4))


@pytest.mark.parametrize("stray", ["unused", "dead_end", "nonpad_kv_seqlen"])
def test_an_input_that_the_engine_would_ignore_fails_the_build(
    build: Build, tmp_path: Path, stray: Literal["unused", "dead_end", "nonpad_kv_seqlen"]
) -> None:
    with pytest.raises(EngineError, match=f"input not consumed: {stray}"):
        build(Decoder(stray_input=stray))
    assert list((tmp_path / "engine").iterdir()) == []


def test_garbage_instead_of_onnx_fails_with_tensorrts_own_words(tmp_path: Path) -> None:
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"garbage\n")
    with pytest.raises(EngineError, match="Failed to parse the ONNX model"):
        build_engine(onnx, [target("sm86")], tmp_path / "e", recipe=load_recipe("fp16"), profiles=profiles(32, 4))


def test_garbage_that_tensorrts_parser_takes_for_an_empty_graph_is_refused_too(tmp_path: Path) -> None:
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"this is not a graph" * 10)
    with pytest.raises(EngineError, match="is not an ONNX graph"):
        build_engine(onnx, [target("sm86")], tmp_path / "e", recipe=load_recipe("fp16"), profiles=profiles(32, 4))


def test_weights_that_are_missing_beside_the_graph_are_named(tmp_path: Path) -> None:
    onnx = write_decoder(tmp_path, Decoder())
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(EngineError, match=r"model\.onnx\.data"):
        build_engine(onnx, [target("sm86")], tmp_path / "e", recipe=load_recipe("fp16"), profiles=profiles(32, 4))


def test_an_operator_that_tensorrt_does_not_know_is_named_with_its_node(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch"]) for name in ("x", "y")]
    node = helper.make_node("GroupQueryAttention", ["x"], ["y"], name="odd_one", domain="com.microsoft")
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "model.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=opsets), path)
    with pytest.raises(EngineError, match=r"odd_one.*GroupQueryAttention"):
        build_engine(path, [target("sm86")], tmp_path / "e", recipe=load_recipe("fp16"), profiles=profiles(32, 4))


def test_a_graph_that_is_not_there_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nowhere\.onnx is not a file"):
        build_engine(
            tmp_path / "nowhere.onnx",
            [target("sm86")],
            tmp_path / "e",
            recipe=load_recipe("fp16"),
            profiles=profiles(32, 4),
        )


def test_a_dimension_that_no_profile_sizes_is_named(tmp_path: Path) -> None:
    onnx = write_decoder(tmp_path, Decoder())
    short = Profile("short", {"batch": Range(1, 1, 1), "seq": Range(1, 8, 8)})
    with pytest.raises(EngineError, match=r"'logits_positions' has the dynamic dimension 'rows'.*batch, seq"):
        build_engine(onnx, [target("sm86")], tmp_path / "e", recipe=load_recipe("fp16"), profiles=[short])


def test_a_prefill_chunk_longer_than_the_cache_fails_with_tensorrts_own_words(tmp_path: Path) -> None:
    onnx = write_decoder(tmp_path, Decoder(max_context=64))
    with pytest.raises(EngineError, match=r"shape constraints.*update"):
        build_engine(onnx, [target("sm86")], tmp_path / "e", recipe=load_recipe("fp16"), profiles=profiles(65, 4))


def test_a_profile_range_that_runs_backwards_is_refused() -> None:
    with pytest.raises(EngineError, match="1 <= min <= opt <= max, found 4, 2, 8"):
        Range(4, 2, 8)
