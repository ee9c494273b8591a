"""The command as a shell sees it: help, usage errors, exit codes, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hermes_deploy.recipes import recipe_names
from hermes_deploy.repository.assemble import write_models
from hermes_deploy.repository.demo import demo_config
from hermes_deploy.repository.engine_config import write_engine_config
from hermes_deploy.targets import TARGETS
from tests.serving.artifact import seal

VERBS = ("build", "serve", "ask", "bench", "inspect", "validate", "doctor", "cache")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hermes_deploy.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_names_every_verb_and_each_verb_has_help() -> None:
    top = run("--help")
    assert top.returncode == 0
    for verb in VERBS:
        assert verb in top.stdout
    helps = {verb: run(verb, "--help") for verb in VERBS}
    helps["cache"] = run("cache", "list", "--help")
    assert all(h.returncode == 0 and "--json" in h.stdout for h in helps.values())
    # the help lists what is really there
    for name in (*recipe_names(), *TARGETS):
        assert name in helps["build"].stdout


def test_an_unknown_option_is_answered_with_the_valid_ones() -> None:
    result = run("build", "smollm2", "--output", "x", "--recip", "int4-awq")
    assert result.returncode == 2
    for option in ("--recip", "--recipe", "--target", "--max-context", "--revision"):
        assert option in result.stderr


def test_an_unknown_verb_is_answered_with_the_valid_ones() -> None:
    result = run("start")
    assert result.returncode == 2
    assert f"Verbs are: {', '.join(VERBS)}" in result.stderr


def test_a_full_output_is_one_message(tmp_path: Path) -> None:
    write_models(tmp_path, demo_config())
    write_engine_config(tmp_path / "hermes_engine/1", demo_config())
    seal(tmp_path, demo_config())
    for verb in ("validate", "doctor"):
        command = [sys.executable, "-m", "hermes_deploy.cli", verb, *([str(tmp_path)] if verb == "validate" else [])]
        with Path("/dev/full").open("wb") as full:
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=120)
        assert (result.returncode, result.stderr) == (1, b"error: No space left on device\n")


def test_ctrl_c_before_the_verb_began_is_one_line() -> None:
    code = (
        "import sys\n"
        "class Early:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Early())\n"
        "from hermes_deploy.cli import main\n"
        "main(['doctor'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (130, "error: interrupted\n")


def test_a_manifest_without_what_inspect_shows_is_an_error_of_the_artifact(tmp_path: Path) -> None:
    seal(tmp_path, demo_config())
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": {}}))
    result = run("inspect", str(tmp_path))
    assert result.returncode == 6
    assert "manifest.json is damaged: it has no 'name'" in result.stderr


def test_what_to_install_is_never_cut_short_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert "…" not in run("doctor").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "int3"), "Recipes are: fp16, fp32, fp8, int4-awq"),
        (("--target", "sm99"), "targets are: cpu, cuda, sm80"),
        (("--recipe", "fp8", "--target", "sm86"), "'fp8' works on: sm89, sm90, sm120"),
        (("--recipe", "fp8", "--target", "cpu"), "cpu takes: fp32, int4-awq"),
        (("--max-slots", "0"), "max_slots"),
        (("--max-context", "-5"), "max_context"),
        (("--target", "cpu", "--target", "cpu"), "twice"),
    ],
)
def test_what_cannot_be_built_is_refused_before_any_work(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = run("build", str(tmp_path / "no-such-model"), "--output", str(tmp_path / "out"), *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_errors_are_json_for_machines_and_one_message_for_people(tmp_path: Path) -> None:
    result = run("inspect", str(tmp_path), "--json")
    assert result.returncode == 6
    error = json.loads(result.stdout)["error"]
    assert error["kind"] == "ArtifactError"
    assert "manifest.json" in error["message"]
    assert result.stderr.startswith("error: ")


def test_doctor_says_what_this_machine_can_do() -> None:
    result = run("doctor", "--json")
    answer = json.loads(result.stdout)
    assert result.returncode == (0 if answer["ok"] else 1)
    rows = {check["what"]: check for check in answer["checks"]}
    assert rows["target cpu"]["state"] == "ok"
    assert rows["onnxruntime"]["state"] == "ok"
    assert "target sm90" in rows


def test_numpy_2_is_a_finding_and_keeps_the_artifact_from_being_called_serveable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hermes_deploy import machine

    real = machine.installed
    assert machine.serveable("cpu") == ""
    monkeypatch.setattr(machine, "tritonserver", lambda: None)
    monkeypatch.setattr(machine, "installed", lambda p: "2.4.6" if p == "numpy" else real(p))
    assert "numpy 2.4.6 kills the Python backend" in machine.serveable("cpu")
    row = next(check for check in machine.examine() if check.what == "numpy")
    assert (row.state, row.advice) == ("broken", "pip install 'numpy<2'")


def test_both_onnxruntimes_together_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    from hermes_deploy import machine

    real = machine.installed
    monkeypatch.setattr(machine, "installed", lambda p: "1.31.1" if p.startswith("onnxruntime") else real(p))
    row = next(check for check in machine.examine() if check.what == "onnxruntime")
    assert row.state == "broken"
    assert "pip uninstall" in row.advice
