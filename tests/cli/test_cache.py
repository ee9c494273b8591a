"""`cache list` and `cache prune` as a shell sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hermes_deploy.pipeline.cache import StageCache
from hermes_deploy.pipeline.keys import StageKey
from tests.cli.test_command import run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two stages of two models, 1 MB and 2 MB."""
    monkeypatch.setenv("HERMES_DEPLOY_STAGES", str(tmp_path / "stages"))
    with StageCache(tmp_path / "stages") as cache:
        for model, size in (("small", 1_000_000), ("large", 2_000_000)):
            key = StageKey("graph", "graph cpu", model, {"of": model})
            cache.obtain(key, lambda folder, size=size: (folder / "data").write_bytes(b"x" * size))
    return tmp_path / "stages"


def test_the_list_names_stage_model_size_and_age(cache: Path) -> None:
    lines = run("cache", "list").stdout.splitlines()
    assert lines[0].split() == ["stage", "model", "size", "made", "used"]
    assert sorted(line.split()[:4] for line in lines[1:3]) == [
        ["graph", "cpu", "large", "2.0"],
        ["graph", "cpu", "small", "1.0"],
    ]
    assert lines[3] == f"2 stages, 3.0 MB, in {cache}"
    found = json.loads(run("cache", "list", "--json").stdout)
    assert found["size"] == sum(entry["size"] for entry in found["entries"])
    assert {entry["model"] for entry in found["entries"]} == {"small", "large"}


def test_a_name_cannot_dress_the_terminal(cache: Path) -> None:
    for entry in cache.glob("*/entry.json"):
        entry.write_text(entry.read_text().replace('"small"', r'"\u001b[31msmall\nfake"'))
    assert "\N{REPLACEMENT CHARACTER}[31msmall\N{REPLACEMENT CHARACTER}fake" in run("cache", "list").stdout


def test_without_a_cache_the_list_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERMES_DEPLOY_STAGES", str(tmp_path / "none"))
    assert run("cache", "list").stdout.startswith("0 stages")
    assert run("cache", "prune", "--all").stdout.startswith("freed 0.0 MB")
    assert list(tmp_path.iterdir()) == []


def test_pruning_says_what_it_freed(cache: Path) -> None:
    kept = run("cache", "prune", "--older-than", "1d", "--keep", "1GB")
    assert kept.stdout == "freed 0.0 MB; 3.0 MB left\n"
    done = json.loads(run("cache", "prune", "--all", "--json").stdout)
    assert {entry["model"] for entry in done["removed"]} == {"small", "large"}
    assert done["left"] == 0
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--older-than 30d, --keep 20GB, or both; or --all alone"),
        (("--all", "--keep", "1GB"), "--all alone"),
        (("--older-than", "30"), "'30' is no length of time"),
        (("--keep", "lots"), "'lots' is no size"),
    ],
)
def test_what_to_remove_must_be_said(arguments: tuple[str, ...], message: str, cache: Path) -> None:
    refused = run("cache", "prune", *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(list(cache.iterdir())) == 2
