"""A build that cannot fit is refused with the numbers; a plan says what would run and what it needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.errors import BuildError, TargetError
from hermes_deploy.pipeline import BuildRequest, StageEvent, build_artifact, free_space, plan_artifact
from hermes_deploy.pipeline.estimate import Estimate, StageNeed, problems
from hermes_deploy.pipeline.free_space import Room
from hermes_deploy.pipeline.job import BuildJob, open_job
from hermes_deploy.pipeline.stage_clock import StageClock
from hermes_deploy.pipeline.variants import MODEL, measure_variants, plan_variants, save_variant
from hermes_deploy.quantization import prepare
from hermes_deploy.recipes import load_recipe, override, recipe_names
from hermes_deploy.targets import target

GB = 10**9


def request(checkpoint: Path, output: Path, **changes: object) -> BuildRequest:
    asked = {"recipe": "fp32", "max_context": 64, "max_slots": 2, "gate_positions": 512, **changes}
    return BuildRequest(str(checkpoint), output, **asked)  # type: ignore[arg-type]


def job(checkpoint: Path, output: Path, **changes: object) -> BuildJob:
    return open_job(request(checkpoint, output, **changes), StageClock(lambda _: None))


def digests(checkpoint: Path, output: Path, **changes: object) -> dict[str, str]:
    return {key.name: key.digest for key in job(checkpoint, output, **changes).plan.keys}


def test_too_little_memory_is_refused_before_any_work_with_the_numbers(
    checkpoint: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_space, "free_memory", lambda: Room(100_000_000, "of this machine's memory"))
    events: list[StageEvent] = []
    with pytest.raises(BuildError, match=r"stage .* needs about \d+ MB of memory, and 100 MB of this machine's memory"):
        build_artifact(request(checkpoint, tmp_path / "a"), events.append)
    assert {event.stage for event in events} == {"checkpoint"}
    assert list(tmp_path.iterdir()) == []
    assert not cache.exists()


def test_too_little_disk_is_refused_before_any_work_with_the_numbers(
    checkpoint: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_space, "free_disk", lambda _: Room(1_000_000, "on the file system of /x"))
    with pytest.raises(BuildError, match=r"for the artifact, and 1 MB on the file system of /x are free.*--output"):
        build_artifact(request(checkpoint, tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []
    assert not cache.exists()


def need(cache: int, artifact: int, memory: int = 0) -> Estimate:
    return Estimate((StageNeed("graph cpu", memory, cache, False), StageNeed("old", 99 * GB, 99 * GB, True)), artifact)


def test_disk_is_counted_on_the_file_system_where_it_is_written() -> None:
    memory = Room(GB, "free")
    one, other = Room(3 * GB, "on one", device=1), Room(3 * GB, "on the other", device=2)
    assert problems(need(2 * GB, 2 * GB), memory, one, other) == []
    (found,) = problems(need(2 * GB, 2 * GB), memory, one, dataclasses.replace(one))
    assert "2.0 GB for stages in the cache and 2.0 GB for the artifact" in found
    (found,) = problems(need(2 * GB, 4 * GB), memory, one, other)
    assert "4.0 GB for the artifact" in found and "on the other" in found


def test_a_stage_that_the_cache_has_needs_nothing() -> None:
    assert need(GB, GB).cache == GB
    assert need(GB, GB, memory=7 * GB).memory == 7 * GB


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_space, "_CGROUPS", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 32000000 kB\nMemAvailable:   16000000 kB\n")
    (tmp_path / "cgroup").write_text("0::/slice/box\n")
    inner, outer = tmp_path / "slice" / "box", tmp_path / "slice"
    inner.mkdir(parents=True)
    for folder, limit in ((inner, "max"), (outer, "4000000000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("1500000000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 500000000\n")
    room = free_space.free_memory(tmp_path / "meminfo", tmp_path / "cgroup")
    assert (room.free, "control group" in room.where) == (3 * GB, True)
    (outer / "memory.max").write_text("max\n")
    assert free_space.free_memory(tmp_path / "meminfo", tmp_path / "cgroup").free == 16000000 * 1024


def test_free_disk_is_told_of_where_a_folder_will_be_made(tmp_path: Path) -> None:
    room = free_space.free_disk(tmp_path / "not" / "yet")
    assert room.device == tmp_path.stat().st_dev
    assert room.free > 0


def takers() -> list[tuple[str, str]]:
    """Every recipe with every form of target that takes it."""
    found = []
    for name in recipe_names():
        recipe, forms = load_recipe(name), set()
        for each in map(target, ("cpu", "cuda", "sm86", "sm89", "sm120")):
            form = (each.dialect, each.activation)
            if recipe.trouble_on(each) is None and form not in forms:
                forms.add(form)
                found.append((name, each.name))
    return found


@pytest.mark.parametrize(("name", "where"), takers())
def test_the_size_of_a_graph_is_known_before_it_is_made(
    name: str, where: str, checkpoint: Path, tmp_path: Path
) -> None:
    source, recipe = open_checkpoint(str(checkpoint)), override(load_recipe(name), {"max_context": 64})
    (variant,) = plan_variants((target(where),))
    expected = measure_variants((variant,), recipe, source)[variant.name]
    preparation = None
    if recipe.calibration_chats:
        sequences = [list(range(40)), list(range(60, 99))]
        preparation = prepare(source.config, source.tensors, sequences, recipe, target(where))
    save_variant(variant, tmp_path, recipe, source, preparation, lambda *_: None)
    written = sum(path.stat().st_size for path in tmp_path.iterdir()) - (tmp_path / MODEL).stat().st_size
    # data offsets are multiples of 4096: that much a tensor, of a few dozen, is between
    assert expected.stored == pytest.approx(written, rel=0.02, abs=4096 * 60)


def test_slots_are_the_engines_alone_and_the_context_is_the_graphs(checkpoint: Path, tmp_path: Path) -> None:
    asked = {"recipe": "fp16", "targets": ("sm86",)}
    first = digests(checkpoint, tmp_path / "a", **asked)
    slots = digests(checkpoint, tmp_path / "a", **asked, max_slots=4)
    assert {name for name in first if first[name] != slots[name]} == {"engine sm86"}
    context = digests(checkpoint, tmp_path / "a", **asked, max_context=128)
    assert {name for name in first if first[name] != context[name]} == {
        "graph tensorrt",
        "gate tensorrt",
        "engine sm86",
    }
    more = digests(checkpoint, tmp_path / "a", recipe="fp16", targets=("sm86", "sm89"))
    assert {name for name in more if name not in first} == {"engine sm86+sm89"}
    assert {name for name in first if name in more and more[name] != first[name]} == set()


def test_a_cache_in_8_bits_is_a_fourth_and_makes_calibration_and_graph_anew(checkpoint: Path, tmp_path: Path) -> None:
    plain, coded = (job(checkpoint, tmp_path / name, recipe=name) for name in ("int4-awq", "int4-awq-kv8"))
    # two slots of 64 tokens; two layers with two heads of 64 keys and 64 values each, in float32
    assert plain.estimate.caches == {"cpu": 2 * 64 * 2 * 2 * 128 * 4}
    assert coded.estimate.caches == {"cpu": plain.estimate.caches["cpu"] // 4}
    changed = {one.name for one, other in zip(plain.plan.keys, coded.plan.keys, strict=True) if one != other}
    assert changed == {"calibrate cpu", "graph cpu", "gate cpu"}


def test_a_plan_says_what_would_run_and_does_nothing(checkpoint: Path, tmp_path: Path, cache: Path) -> None:
    planned = plan_artifact(request(checkpoint, tmp_path / "a"))
    assert [(need.stage, need.reused) for need in planned.estimate.stages] == [
        ("reference", False),
        ("graph cpu", False),
        ("gate cpu", False),
    ]
    assert planned.problems == []
    assert list(tmp_path.iterdir()) == []
    assert not cache.exists()
    report = build_artifact(request(checkpoint, tmp_path / "a"))
    assert report.size == pytest.approx(report.estimate.artifact, abs=30_000_000)
    again = plan_artifact(request(checkpoint, tmp_path / "b"))
    assert all(need.reused for need in again.estimate.stages)
    assert again.estimate.cache == 0


def test_a_plan_refuses_what_a_build_would_refuse(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError):
        plan_artifact(request(checkpoint, tmp_path / "a", targets=("sm1",)))
