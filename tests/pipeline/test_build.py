"""A whole build: what stands at the end, and what stands after it failed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hermes_deploy.engines import read_sidecar
from hermes_deploy.errors import (
    BuildError,
    CheckpointError,
    GateError,
    GraphError,
    QuantizationError,
    RecipeError,
    TargetError,
    UsageError,
)
from hermes_deploy.pipeline import BuildRequest, StageEvent, build_artifact
from hermes_deploy.repository.engine_config import read_engine_config
from hermes_deploy.repository.manifest import list_files, read_manifest, verify_files
from hermes_deploy.verification import GateResult, Reference, run_gate
from tests.fixtures.tiny import make_mistral
from tests.pipeline.conftest import LENIENT, with_gate


def request(checkpoint: Path, output: Path, **changes: object) -> BuildRequest:
    asked = {"recipe": "fp32", "max_context": 64, "max_slots": 2, "gate_positions": 512, **changes}
    return BuildRequest(str(checkpoint), output, **asked)  # type: ignore[arg-type]


def left_behind(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_every_file_is_in_the_manifest_and_nothing_else_is_there(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert verify_files(artifact, manifest) == []
    top = {Path(name).parts[0] for name in list_files(artifact) if len(Path(name).parts) > 1}
    assert top == {"hermes", "chatml_preprocess", "hermes_engine", "chatml_postprocess"}
    assert left_behind(artifact.parent) == [artifact.name]


def test_the_gate_ran_the_very_tensors_of_every_engine(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert [entry.name for entry in manifest.targets] == ["cpu", "sm86", "sm89"]
    for entry in manifest.targets:
        assert entry.tensors_sha256 == entry.gated_tensors_sha256
        assert entry.gate.passed
        assert entry.gate.measures["positions"] > 100
        assert set(entry.engine_files) <= set(manifest.files)
    cpu, sm86, sm89 = manifest.targets
    assert cpu.tensors_sha256 != sm86.tensors_sha256
    assert sm86.engine_files == sm89.engine_files
    sidecar = read_sidecar(artifact / Path(sm86.engine_files[0]).parent)
    assert sidecar.targets == ["sm86", "sm89"]
    assert sidecar.precision == "int4"


def test_the_artifact_carries_the_gates_report_which_says_where_its_numbers_come_from(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    assert "gate-report.html" in manifest.files
    text = (artifact / "gate-report.html").read_text()
    assert manifest.model.sha256 in text
    assert manifest.calibration is not None
    assert manifest.calibration.sha256 in text
    for entry in manifest.targets:
        assert entry.gate.reference in text
    assert str(artifact.parent) not in text


def test_context_and_slots_stand_in_recipe_manifest_and_configs(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    config = read_engine_config(artifact / "hermes_engine" / "1")
    assert (manifest.max_context, manifest.max_slots) == (64, 2)
    assert (manifest.recipe["max_context"], manifest.recipe["max_slots"]) == (64, 2)
    assert (config.max_context, config.max_slots) == (64, 2)
    text = (artifact / "hermes_engine" / "config.pbtxt").read_text()
    assert 'key: "max_context"' in text
    assert 'string_value: "64"' in text


def test_the_artifact_says_what_is_known_of_its_licence(artifact: Path) -> None:
    text = (artifact / "MODEL_LICENSE").read_text()
    assert "carries no licence text" in text
    assert "The licence that it names: unknown" in text
    assert "tiny-mistral" in (artifact / "MODEL_CITATION").read_text()


def test_two_builds_of_one_checkpoint_give_the_same_bytes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hermes_deploy.pipeline.request.load_recipe", lambda name: with_gate(name, LENIENT))
    manifests = []
    for name in ("one", "two"):
        build_artifact(request(checkpoint, tmp_path / name, recipe="int4-awq", cache=False))
        manifests.append(read_manifest(tmp_path / name))
    assert manifests[0].files == manifests[1].files


def test_stages_are_told_as_they_begin_and_end(checkpoint: Path, tmp_path: Path) -> None:
    events: list[StageEvent] = []
    report = build_artifact(request(checkpoint, tmp_path / "a"), events.append)
    ended = [event.stage for event in events if event.kind == "end"]
    begun = [event.stage for event in events if event.kind == "begin"]
    assert ended == begun == list(report.stages)
    told = [event for event in events if event.kind == "progress" and event.stage == "graph cpu"]
    assert len(told) > 5
    assert {event.unit for event in told} == {"tensors"}
    assert [event.done for event in told] == list(range(told[0].done, told[0].done + len(told)))
    assert all(event.done <= event.total for event in told)
    assert {"checkpoint", "reference", "graph cpu", "gate cpu", "package"} <= set(ended)
    assert [line.split(",")[0] for line in report.gates] == ["gate cpu: fp32"]
    assert report.size == sum(entry.size for entry in read_manifest(tmp_path / "a").files.values())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"recipe": "int5"}, RecipeError),
        ({"targets": ("sm1",)}, TargetError),
        ({"targets": ()}, TargetError),
        ({"recipe": "fp8", "targets": ("sm89", "sm86")}, TargetError),
        ({"recipe": "int4-awq", "targets": ("sm90",)}, TargetError),
        ({"max_context": 100_000}, UsageError),
        ({"max_slots": 0}, RecipeError),
    ],
)
def test_what_cannot_be_had_is_refused(
    changes: dict[str, object], error: type[Exception], checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(error):
        build_artifact(request(checkpoint, tmp_path / "a", **changes))
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("shape", "changes", "error", "message"),
    [
        ({"hidden_size": 48}, {"recipe": "int4-awq"}, QuantizationError, r"layers.0.qkv \(K = 48\)"),
        ({"head_dim": 24}, {}, GraphError, "head_dim is 24; rotary kernels need a multiple of 16"),
        ({"num_attention_heads": 2}, {"recipe": "fp16", "targets": ("sm86",)}, GraphError, "2 query heads"),
    ],
)
def test_a_model_that_no_engine_takes_is_refused_before_a_weight_is_read(
    shape: dict[str, int], changes: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    events: list[StageEvent] = []
    model = make_mistral(tmp_path / "model", **shape)
    with pytest.raises(error, match=message):
        build_artifact(request(model, tmp_path / "a", **changes), events.append)
    assert {event.stage for event in events} == {"checkpoint"}
    assert left_behind(tmp_path) == ["model"]


STRICT_ROLES = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' if message['role'] == 'user' else message['content'] }}"
    "{% endfor %}"
)


def retemplated(checkpoint: Path, folder: Path, template: str) -> Path:
    shutil.copytree(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_a_template_that_refuses_system_messages_can_be_calibrated_and_gated(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hermes_deploy.pipeline.request.load_recipe", lambda name: with_gate(name, LENIENT))
    model = retemplated(checkpoint, tmp_path / "model", STRICT_ROLES)
    build_artifact(request(model, tmp_path / "a", recipe="int4-awq"))
    assert read_manifest(tmp_path / "a").model.family == "mistral-instruct"


@pytest.mark.parametrize("template", ["<|im_start|>{{ raise_exception('no') }}", "{# <|im_start|> #}"])
@pytest.mark.parametrize("recipe", ["fp32", "int4-awq"])
def test_a_template_that_renders_no_chat_is_the_checkpoints_fault(
    template: str, recipe: str, checkpoint: Path, tmp_path: Path
) -> None:
    model = retemplated(checkpoint, tmp_path / "model", template)
    with pytest.raises(CheckpointError, match="render"):
        build_artifact(request(model, tmp_path / "a", recipe=recipe))
    assert left_behind(tmp_path) == ["model"]


def test_a_build_over_the_threshold_publishes_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = {**LENIENT, "max_tensor_error": 1e-6}
    monkeypatch.setattr("hermes_deploy.pipeline.request.load_recipe", lambda name: with_gate(name, strict))
    with pytest.raises(GateError, match="Nothing is published"):
        build_artifact(request(checkpoint, tmp_path / "a", recipe="int4-awq"))
    assert left_behind(tmp_path) == []


def test_an_engine_with_other_tensors_than_the_gate_ran_is_not_published(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gate_then_damage(reference: Reference, graph: Path, *arguments: Any, **named: Any) -> GateResult:
        result = run_gate(reference, graph, *arguments, **named)
        data = graph.with_name("model.onnx.data")
        whole = bytearray(data.read_bytes())
        whole[len(whole) // 2] ^= 1
        data.write_bytes(whole)
        return result

    monkeypatch.setattr("hermes_deploy.pipeline.stages.run_gate", gate_then_damage)
    with pytest.raises(BuildError, match="ran other tensors than its engine holds"):
        build_artifact(request(checkpoint, tmp_path / "a"))
    assert left_behind(tmp_path) == []


def test_a_damaged_checkpoint_publishes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError):
        build_artifact(request(broken, tmp_path / "a"))
    assert left_behind(tmp_path) == ["broken"]


COMMAND = [sys.executable, "-m", "hermes_deploy.cli", "build"]


@pytest.mark.parametrize("stage", ["reference", "graph cpu", "gate cpu", "engine sm86", "package"])
def test_a_build_killed_at_any_stage_leaves_nothing_that_looks_finished(
    stage: str, checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a"
    # the build kills itself where the stage begins: no race, the same at every run
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from hermes_deploy.pipeline import BuildRequest, build_artifact\n"
        "def on(event):\n"
        "    if event.stage == sys.argv[3] and event.kind == 'begin': os.kill(os.getpid(), signal.SIGKILL)\n"
        "recipe, target = ('fp16', 'sm86') if 'sm86' in sys.argv[3] else ('fp32', 'cpu')\n"
        "asked = BuildRequest(sys.argv[1], Path(sys.argv[2]), recipe, (target,), max_context=64, gate_positions=512)\n"
        "build_artifact(asked, on)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(checkpoint), str(output), stage], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not output.exists()
    # the next build clears up and succeeds
    build_artifact(request(checkpoint, output))
    assert left_behind(tmp_path) == ["a"]
    assert verify_files(output, read_manifest(output)) == []


def test_ctrl_c_and_sigterm_stop_a_build_and_leave_nothing(checkpoint: Path, tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [
                *COMMAND,
                str(checkpoint),
                "--output",
                str(tmp_path / "a"),
                "--recipe",
                "fp16",
                "--target",
                "sm86",
                "--max-context",
                "64",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 60
        while not left_behind(tmp_path) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        assert stderr.endswith("error: interrupted\n")
        assert "Traceback" not in stderr
        assert left_behind(tmp_path) == []


def on_a_small_disk(disk: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """A small file system of its own where the machine lets us mount one, else a limit on file size; stdout: `ls`."""
    disk.mkdir()
    script = (
        'mount -t tmpfs -o size=200k tmpfs $1 && shift && exec "$@"'
        if os.geteuid() == 0
        else "shift; ulimit -f 100; trap '' XFSZ; exec \"$@\""
    )
    wrapper = ["unshare", "-m", "sh", "-c", script] if os.geteuid() == 0 else ["sh", "-c", script]
    ls = "; code=$?; ls -A $0; exit $code"
    inner = ["sh", "-c", '"$@"' + ls, str(disk), *command]
    return subprocess.run([*wrapper, "sh", str(disk), *inner], capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system")
def test_a_disk_that_is_too_small_is_refused_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--recipe", "fp32", "--max-context", "64", "--gate-positions", "512"]
    disk = tmp_path / "disk"
    done = on_a_small_disk(disk, [*COMMAND, str(checkpoint), "--output", str(disk / "a"), *flags])
    assert done.returncode == BuildError.exit_code, done.stderr
    assert re.search(rf"about \d+ MB for the artifact, and 0 MB on the file system of {disk} are free", done.stderr)
    assert done.stdout == "", "the build left files on the disk"


def test_a_disk_that_becomes_full_is_one_clear_message_and_nothing_is_left(checkpoint: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    # somebody else fills it after the build has looked
    code = (
        "import sys\n"
        "import hermes_deploy.pipeline.build as build\n"
        "build.refuse = lambda _: None\n"
        "from hermes_deploy.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    flags = ["--recipe", "fp32", "--max-context", "64", "--gate-positions", "512"]
    command = [sys.executable, "-c", code, "build", str(checkpoint), "--output", str(disk / "a"), *flags]
    done = on_a_small_disk(disk, command)
    assert done.returncode == BuildError.exit_code, done.stderr
    assert re.search(r"error: .*(cannot be written|the disk became full).*[Ff]ree (some )?space", done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "the build left files on the disk"


def test_the_report_is_json_on_stdout_and_progress_on_stderr(checkpoint: Path, tmp_path: Path) -> None:
    command = [*COMMAND, str(checkpoint), "--output", str(tmp_path / "a"), "--recipe", "fp32", "--json"]
    done = subprocess.run(
        [*command, "--max-context", "64", "--gate-positions", "512"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["recipe"] == "fp32"
    assert report["measures"]["cpu"]["kl"] < 1e-4
    assert "gate cpu" in done.stderr
    assert all(line.strip() for line in done.stderr.splitlines())
