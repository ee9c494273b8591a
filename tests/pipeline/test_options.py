"""What a build can be told: an adapter, chats of one's own, a key, a reason to ship in spite of the gate."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hermes_deploy.errors import GateError, UsageError
from hermes_deploy.pipeline import BuildRequest, StageEvent, build_artifact
from hermes_deploy.repository.manifest import read_manifest, verify_files
from hermes_deploy.repository.signature import is_signed, verify_signature
from tests.fixtures.keys import write_keys
from tests.pipeline.conftest import LENIENT, with_gate


def request(checkpoint: Path, output: Path, **changes: object) -> BuildRequest:
    asked = {"recipe": "fp32", "max_context": 64, "max_slots": 2, "gate_positions": 512, **changes}
    return BuildRequest(str(checkpoint), output, **asked)  # type: ignore[arg-type]


def allow(monkeypatch: pytest.MonkeyPatch, thresholds: dict[str, float]) -> None:
    monkeypatch.setattr("hermes_deploy.pipeline.request.load_recipe", lambda name: with_gate(name, thresholds))


def test_a_gate_that_fails_is_accepted_with_a_reason_and_is_not_run_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, {**LENIENT, "max_tensor_error": 1e-6})
    with pytest.raises(GateError, match="Nothing is published"):
        build_artifact(request(checkpoint, tmp_path / "a", recipe="int4-awq"))
    assert list(tmp_path.iterdir()) == []
    asked = request(checkpoint, tmp_path / "a", recipe="int4-awq", accept_degraded="a test of the office door")
    report = build_artifact(asked)
    assert set(report.stages) - set(report.reused) == {"checkpoint", "package"}
    manifest = read_manifest(tmp_path / "a")
    assert report.degraded == manifest.degraded == "a test of the office door"
    (target,) = manifest.targets
    assert not target.gate.passed
    assert "relative error of weights" in target.gate.problems[0]


def test_a_reason_that_was_not_needed_is_not_in_the_manifest(checkpoint: Path, tmp_path: Path) -> None:
    report = build_artifact(request(checkpoint, tmp_path / "a", accept_degraded="just in case"))
    assert report.degraded is None
    assert read_manifest(tmp_path / "a").degraded is None


def test_chats_of_ones_own_are_calibrated_with(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, LENIENT)
    chats = tmp_path / "chats.jsonl"
    lines = [[{"role": "user", "content": f"What is {i} and {i}?"}] for i in range(3)]
    chats.write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))
    build_artifact(request(checkpoint, tmp_path / "packaged", recipe="int4-awq"))
    report = build_artifact(request(checkpoint, tmp_path / "own", recipe="int4-awq", calibration=chats))
    assert set(report.reused) == {"reference"}
    entry = read_manifest(tmp_path / "own").calibration
    assert entry is not None
    assert (entry.source, entry.chats) == ("chats.jsonl", 3)
    assert entry.sha256 == hashlib.sha256(chats.read_bytes()).hexdigest()
    packaged = read_manifest(tmp_path / "packaged").calibration
    assert packaged is not None
    assert packaged.source == "packaged"


def test_an_adapter_is_merged_and_makes_it_another_model(checkpoint: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"], "task_type": "CAUSAL_LM"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.{}.self_attn.o_proj.lora_{}.weight"
    random = np.random.default_rng(0)
    shapes = {name.format(i, half): shape for i in (0, 1) for half, shape in (("A", (2, 256)), ("B", (256, 2)))}
    tensors = {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    build_artifact(request(checkpoint, tmp_path / "plain"))
    report = build_artifact(request(checkpoint, tmp_path / "merged", adapter=adapter))
    assert report.reused == []
    manifest = read_manifest(tmp_path / "merged")
    assert manifest.model.adapter is not None
    assert manifest.targets[0].tensors_sha256 != read_manifest(tmp_path / "plain").targets[0].tensors_sha256


def test_a_signed_artifact_differs_from_an_unsigned_one_by_its_signature_alone(
    checkpoint: Path, tmp_path: Path
) -> None:
    private, public = write_keys(tmp_path, "key")
    build_artifact(request(checkpoint, tmp_path / "plain"))
    build_artifact(request(checkpoint, tmp_path / "signed", sign_with=private))
    verify_signature(tmp_path / "signed", public)
    assert verify_files(tmp_path / "signed", read_manifest(tmp_path / "signed")) == []
    assert not is_signed(tmp_path / "plain")
    assert read_manifest(tmp_path / "signed").files == read_manifest(tmp_path / "plain").files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate_positions": 100}, "at least 512"),
        ({"accept_degraded": "  "}, "needs the reason"),
        ({"accept_degraded": "\N{ZERO WIDTH SPACE}"}, "says nothing in words"),
        ({"accept_degraded": "x" * 501}, "has 501 characters; at most 500"),
        ({"accept_degraded": "fine\nINFO all gates passed"}, r"has the character '\\n'; it must be one line"),
        ({"accept_degraded": "fine\x1b[2J"}, r"has the character '\\x1b'"),
        ({"accept_degraded": "not UTF-8: \udcff"}, r"has the character '\\udcff'"),
        ({"calibration": Path("chats.jsonl")}, "nothing to calibrate"),
        ({"recipe": "int4-awq", "calibration": Path("no-such-file.jsonl")}, "does not exist"),
        ({"sign_with": Path("no-such-key")}, "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_checkpoint_is_opened(
    changes: dict[str, object], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    events: list[StageEvent] = []
    with pytest.raises(UsageError, match=message):
        build_artifact(request(checkpoint, tmp_path / "a", **changes), events.append)
    assert events == []
    assert list(tmp_path.iterdir()) == []


def test_more_positions_than_there_are_held_out_are_refused_with_how_many_there_are(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"the held-out texts have \d+ positions with this model's tokenizer"):
        build_artifact(request(checkpoint, tmp_path / "a", gate_positions=10**9))
    assert list(tmp_path.iterdir()) == []
