"""A whole benchmark of the tiny artifact in process: what is in the report, whatever the numbers are."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hermes_deploy.benchmarking import Options, Progress, Report, bench, run, throughput_plot
from hermes_deploy.repository.manifest import hash_file
from tests.benchmarking.conftest import TINY, slow


@pytest.fixture(scope="module")
def steps() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def report(artifact: Path, steps: list[Progress]) -> Report:
    opened = slow(run.open_artifact(artifact))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "open_artifact", lambda _: opened)
        return bench(artifact, Options((1, 2, 16), 2, ("in-process",), sizes=TINY), steps.append)


def test_every_measure_has_a_value_of_every_round(report: Report) -> None:
    rows = {(row.what.measure, row.what.streams, row.what.context): row for row in report.rows}
    assert set(rows) == {
        ("prefill", 1, 200),
        ("first token, cold prompt", 1, 200),
        *(
            (measure, streams, context)
            for measure in ("decode", "between pieces p50", "between pieces p99")
            for streams in (1, 2)
            for context in TINY.contexts
        ),
        ("first token, cold chat", 1, 260),
        ("first token, its second turn", 1, 260),
        ("second turn, share found in the cache", 1, 260),
        ("second turn against cold", 1, 260),
        *(("all streams against one", 2, context) for context in TINY.contexts),
    }
    for row in rows.values():
        assert len(row.values) == 2
        assert all(math.isfinite(value) and value > 0 for value in row.values)


def test_a_second_turn_finds_its_history_in_the_cache(report: Report) -> None:
    shares = next(row for row in report.rows if row.what.measure == "second turn, share found in the cache")
    assert all(0.5 < share < 1 for share in shares.values)


def test_what_is_left_out_says_why(report: Report) -> None:
    why = {each.what: each.why for each in report.left_out}
    assert "4 slots" in why["16 streams"]
    assert "--max-slots 16" in why["16 streams"]
    assert "--doors" in why["PSS of a server"]
    assert why["PSS with all slots full"] == "it was not asked for"
    assert "in-process" not in why["PSS of a server"]


def test_the_json_names_the_machine_the_versions_and_the_artifact(report: Report, artifact: Path) -> None:
    document = json.loads(json.dumps(report.document()))
    assert set(document) == {"schema", "machine", "versions", "artifact", "options", "rows", "left_out"}
    assert document["artifact"]["manifest_sha256"] == hash_file(artifact / "manifest.json").sha256
    assert document["machine"]["cores"] >= document["machine"]["threads"] >= 1
    assert document["machine"]["cpu"]
    assert {"hermes-deploy", "python", "onnxruntime", "numpy"} <= set(document["versions"])
    assert document["options"]["streams"] == [1, 2, 16]
    row = document["rows"][0]
    assert row["least"] <= row["median"] <= row["greatest"]
    assert len(row["rounds"]) == 2
    assert str(artifact) not in json.dumps(document)


def test_the_plot_is_a_picture_with_a_point_for_each_number_of_streams_and_context(report: Report) -> None:
    root = ElementTree.fromstring(throughput_plot(report))
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    points = root.findall(f"{space}circle")
    assert len(points) == 4
    titles = [point.findtext(f"{space}title") for point in points]
    assert all(title is not None and "in-process" in title and "tokens/s" in title for title in titles)


def test_progress_counts_to_its_end(report: Report, steps: list[Progress]) -> None:
    assert report.rows
    assert [step.done for step in steps] == list(range(len(steps)))
    assert (steps[-1].done, steps[-1].what) == (steps[-1].total, "")


def test_memory_with_all_slots_full_holds_the_cache_once(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = dataclasses.replace(slow(run.open_artifact(artifact)), max_context=256, max_slots=2)
    monkeypatch.setattr(run, "open_artifact", lambda _: opened)
    sizes = dataclasses.replace(TINY, contexts=(160,), history=250, full=True, prefill=160)
    report = bench(artifact, Options((1,), 1, ("in-process",), sizes=sizes))
    found = {row.what.measure: row.median for row in report.rows if row.what.measure.startswith("PSS")}
    # 2 layers, key and value, 2 heads of 16 floats: 512 bytes a token; 2 slots of 256 tokens
    assert found["PSS, all slots full: of it the KV cache"] == pytest.approx(2 * 256 * 512 / 1e6, rel=0.05)
    assert found["PSS, all slots full"] > 20
    assert any("second turn" in each.what and "256" in each.why for each in report.left_out)
