"""`serve` before anything is started: its configuration as a shell sees it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.test_command import run


def test_show_config_prints_every_setting_and_its_source_and_starts_nothing(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("drain_timeout: 12\nlog_format: json\n")
    shown = run("serve", "--show-config", "--config", str(config), "--queue-limit", "3", "--set", "log-format=text")
    assert shown.returncode == 0, shown.stderr
    lines = {line.split(":")[0]: line for line in shown.stdout.splitlines()}
    assert lines["drain_timeout"].split() == ["drain_timeout:", "12.0", "#", "file", str(config)]
    assert lines["queue_limit"].endswith("# --queue-limit")
    assert lines["log_format"].split() == ["log_format:", '"text"', "#", "--log-format"]
    assert lines["host"].endswith("# default")
    as_json = run("serve", "--show-config", "--json")
    assert json.loads(as_json.stdout)["health_port"] == {"value": 8003, "from": "default"}


def test_a_wrong_configuration_is_a_usage_error_with_everything_in_it(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("grpc_port: x\nunknown: 1\n")
    refused = run("serve", "no-artifact", "--config", str(config), "--set", "restarts=-1")
    assert refused.returncode == 2
    for part in ("grpc_port is 'x'", "unknown is no setting", "restarts is '-1'"):
        assert part in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_artifact_that_is_not_given_is_asked_for() -> None:
    refused = run("serve")
    assert refused.returncode == 2
    assert "hermes-deploy serve FOLDER" in refused.stderr
