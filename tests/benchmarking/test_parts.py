"""A benchmark in parts: which are run, and what becomes of one that cannot be had or fails."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from hermes_deploy.benchmarking import Limit, Report, Row, What
from hermes_deploy.benchmarking.listening import NotMeasured
from hermes_deploy.benchmarking.parts import add_only, chosen, finish, run_parts
from hermes_deploy.errors import ServeError


def part(name: str) -> Report:
    return Report({}, (Row(What(name, "s"), (1.0,)),), ())


def missing() -> Report:
    raise NotMeasured("build/long is not there")


def failing() -> Report:
    raise ServeError("no port is free")


def test_a_part_that_fails_leaves_the_others_their_rows_and_is_told() -> None:
    parts = {"first": lambda: part("first"), "missing": missing, "failing": failing, "last": lambda: part("last")}
    report, failed = run_parts(parts, parts, Report({}, (), ()), lambda _: None)
    assert failed
    assert [row.what.measure for row in report.rows] == ["first", "last"]
    assert [(each.what, each.why) for each in report.left_out] == [
        ("missing", "build/long is not there"),
        ("failing", "FAILED: no port is free"),
    ]


def test_a_part_that_is_left_out_is_no_failure() -> None:
    assert run_parts(["missing"], {"missing": missing}, Report({}, (), ()), lambda _: None)[1] is False


def test_a_name_that_is_no_part_ends_the_script_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_only(parser, ["doors", "crowd"])
    assert chosen(parser, parser.parse_args([]).only, ["doors", "crowd"]) == ["doors", "crowd"]
    with pytest.raises(SystemExit):
        chosen(parser, "doors,windows", ["doors", "crowd"])
    assert "--only names windows; there are: doors, crowd" in capsys.readouterr().err


def test_a_row_beyond_its_limit_is_told_by_the_end_and_by_the_file(tmp_path: Path) -> None:
    limits = {"slow": Limit(most=0.5), "fast": Limit(most=2)}
    parts = {name: (lambda name=name: part(name)) for name in limits}
    facts = {"machine": {}, "versions": {}}
    slow, _ = run_parts(["slow"], parts, Report(facts, (), ()), lambda what: limits[what.measure])
    fast, _ = run_parts(["fast"], parts, Report(facts, (), ()), lambda what: limits[what.measure])
    assert finish(fast, None)
    assert not finish(slow, tmp_path / "slow.json")
    assert json.loads((tmp_path / "slow.json").read_text())["rows"][0]["reached"] is False
