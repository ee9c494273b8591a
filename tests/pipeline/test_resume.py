"""What a second build does again, and what it takes from the first, whole or killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hermes_deploy.errors import GateError
from hermes_deploy.pipeline import BuildReport, BuildRequest, StageEvent, build_artifact
from hermes_deploy.recipes import override
from hermes_deploy.repository.manifest import read_manifest, verify_files
from tests.fixtures.tiny import make_mistral
from tests.pipeline.conftest import LENIENT, with_gate

CPU_STAGES = {"reference", "calibrate cpu", "graph cpu", "gate cpu"}


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, LENIENT)


def allow(monkeypatch: pytest.MonkeyPatch, thresholds: dict[str, float]) -> None:
    monkeypatch.setattr("hermes_deploy.pipeline.request.load_recipe", lambda name: with_gate(name, thresholds))


def build(checkpoint: Path, output: Path, **changes: object) -> BuildReport:
    asked = {"recipe": "int4-awq", "max_context": 64, "max_slots": 2, "gate_positions": 512, **changes}
    return build_artifact(BuildRequest(str(checkpoint), output, **asked))  # type: ignore[arg-type]


def done_again(report: BuildReport) -> set[str]:
    return set(report.stages) - set(report.reused) - {"checkpoint", "package"}


def test_the_same_build_again_runs_no_stage_and_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    assert done_again(build(checkpoint, tmp_path / "one")) == CPU_STAGES
    assert done_again(build(checkpoint, tmp_path / "two")) == set()
    assert read_manifest(tmp_path / "one").files == read_manifest(tmp_path / "two").files


def test_a_build_with_one_change_does_again_only_what_depends_on_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(checkpoint, tmp_path / "first")
    assert done_again(build(checkpoint, tmp_path / "slots", max_slots=5)) == set()
    assert read_manifest(tmp_path / "slots").max_slots == 5
    assert done_again(build(checkpoint, tmp_path / "context", max_context=96)) == {"graph cpu", "gate cpu"}
    again = done_again(build(checkpoint, tmp_path / "target", targets=("cpu", "cuda")))
    assert again == {"calibrate cuda", "graph cuda", "gate cuda"}
    allow(monkeypatch, {**LENIENT, "max_kl": 0.69})
    assert done_again(build(checkpoint, tmp_path / "thresholds")) == set()
    assert done_again(build(checkpoint, tmp_path / "positions", gate_positions=600)) == {"reference", "gate cpu"}
    other = make_mistral(tmp_path / "other", seed=5)
    assert done_again(build(other, tmp_path / "model")) == CPU_STAGES


def test_a_build_that_failed_its_gate_keeps_what_it_made(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, {**LENIENT, "max_tensor_error": 1e-6})
    with pytest.raises(GateError):
        build(checkpoint, tmp_path / "a")
    allow(monkeypatch, LENIENT)
    assert done_again(build(checkpoint, tmp_path / "a")) == set()


def test_without_the_cache_nothing_is_reused_and_nothing_is_kept(checkpoint: Path, tmp_path: Path, cache: Path) -> None:
    for name in ("one", "two"):
        assert done_again(build(checkpoint, tmp_path / name, cache=False)) == CPU_STAGES
    assert not cache.exists()
    assert read_manifest(tmp_path / "one").files == read_manifest(tmp_path / "two").files


def test_a_damaged_stage_is_said_and_done_again(checkpoint: Path, tmp_path: Path, cache: Path) -> None:
    build(checkpoint, tmp_path / "one")
    (data,) = cache.glob("graph-*/model.onnx.data")
    whole = bytearray(data.read_bytes())
    whole[len(whole) // 2] ^= 1
    data.write_bytes(whole)
    events: list[StageEvent] = []
    asked = BuildRequest(str(checkpoint), tmp_path / "two", "int4-awq", max_context=64, max_slots=2, gate_positions=512)
    report = build_artifact(asked, events.append)
    assert done_again(report) == {"graph cpu"}
    (note,) = [event for event in events if event.kind == "note"]
    assert note.stage == "graph cpu"
    assert "model.onnx.data" in note.detail and "damaged" in note.detail
    assert read_manifest(tmp_path / "one").files == read_manifest(tmp_path / "two").files


def test_changing_the_artifact_does_not_change_the_cache(checkpoint: Path, tmp_path: Path) -> None:
    build(checkpoint, tmp_path / "one")
    first = read_manifest(tmp_path / "one").files
    with (tmp_path / "one" / "hermes_engine" / "1" / "cpu" / "model.onnx.data").open("r+b") as stream:
        stream.write(b"\0" * 4096)
    assert done_again(build(checkpoint, tmp_path / "two")) == set()
    assert read_manifest(tmp_path / "two").files == first


# the build kills itself where a stage begins or is on its way: no race, the same at every run
KILLED = """
import os, signal, sys
from pathlib import Path
from hermes_deploy.pipeline import BuildRequest, build_artifact
from hermes_deploy.recipes import Recipe
import hermes_deploy.pipeline.request as request

recipe = Recipe.model_validate_json(sys.argv[5])
request.load_recipe = lambda name: recipe
def on(event):
    if [event.stage, event.kind] == sys.argv[3:5]:
        os.kill(os.getpid(), signal.SIGKILL)
asked = BuildRequest(sys.argv[1], Path(sys.argv[2]), "int4-awq", max_context=64, max_slots=2, gate_positions=512)
build_artifact(asked, on)
"""


@pytest.fixture(scope="module")
def clean(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Files of an uninterrupted build, by their hashes."""
    folder = tmp_path_factory.mktemp("clean")
    with pytest.MonkeyPatch.context() as patch:
        allow(patch, LENIENT)
        build(checkpoint, folder / "a", cache=False)
    return dict(read_manifest(folder / "a").files)


@pytest.mark.parametrize(
    ("stage", "moment", "finished"),
    [
        ("reference", "begin", set()),
        ("graph cpu", "progress", {"reference", "calibrate cpu"}),
        ("gate cpu", "begin", CPU_STAGES - {"gate cpu"}),
        ("package", "begin", CPU_STAGES),
    ],
)
def test_a_killed_build_goes_on_where_it_was_and_ends_as_if_never_killed(
    stage: str,
    moment: str,
    finished: set[str],
    checkpoint: Path,
    tmp_path: Path,
    cache: Path,
    clean: dict[str, object],
) -> None:
    output = tmp_path / "a"
    recipe = override(with_gate("int4-awq", LENIENT), {"max_context": 64, "max_slots": 2}).model_dump_json()
    arguments = [str(checkpoint), str(output), stage, moment, recipe]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not output.exists()
    report = build(checkpoint, output)
    assert set(report.reused) == finished
    assert read_manifest(output).files == clean
    assert verify_files(output, read_manifest(output)) == []
    # nothing of the killed one is left, beside the artifact or in the cache
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(list(cache.iterdir())) == len(CPU_STAGES)
    assert not list(cache.glob(".*"))
