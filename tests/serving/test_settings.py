"""Settings: where a value comes from, which one wins, and that everything that is wrong is told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermes_deploy.errors import UsageError
from hermes_deploy.serving.settings import Settings, settings_of
from hermes_deploy.serving.settings_sources import from_pairs, resolve, shown, shown_as_json


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    return path


def test_a_file_wins_over_defaults_a_variable_over_the_file_a_flag_over_all(tmp_path: Path) -> None:
    path = write(tmp_path, "grpc_port: 1001\nhttp_port: 1002\nmetrics_port: 1003\n")
    found = resolve(path, {"HERMES_HTTP_PORT": "2002", "HERMES_METRICS_PORT": "2003"}, {"metrics_port": 3003})
    chosen, sources = found.settings, found.sources
    assert (chosen.grpc_port, chosen.http_port, chosen.metrics_port) == (1001, 2002, 3003)
    assert sources["grpc_port"] == f"file {path}"
    assert sources["http_port"] == "HERMES_HTTP_PORT"
    assert sources["metrics_port"] == "--metrics-port"
    assert sources["health_port"] == "default"


def test_everything_that_is_wrong_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, "grpc_port: many\nqueue_limt: 3\ndrain_timeout: -1\n")
    variables = {"HERMES_MAX_SLOTS": "0", "HERMES_DRAIN_TIMEOUTS": "3", "HERMES_LOG_LEVEL": "loud"}
    with pytest.raises(UsageError) as wrong:
        resolve(path, variables, {"stretch": "nan", "drain_timeout": "30"})
    told = str(wrong.value)
    for part in (
        f"file {path}: grpc_port is 'many'",
        f"file {path}: queue_limt is no setting; settings are: host, grpc_port",
        f"file {path}: drain_timeout is -1",  # although a flag overrides it
        "HERMES_MAX_SLOTS: max_slots is '0'",
        "HERMES_DRAIN_TIMEOUTS is no setting; did you mean HERMES_DRAIN_TIMEOUT?",
        "HERMES_LOG_LEVEL: log_level is 'loud'",
        "--stretch: stretch is 'nan'",
    ):
        assert part in told, told


def test_two_ports_that_are_one_are_refused_wherever_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="grpc_port and health_port are both 9000"):
        resolve(write(tmp_path, "grpc_port: 9000"), {"HERMES_HEALTH_PORT": "9000"}, {})
    assert resolve(None, {}, {"grpc_port": 0, "http_port": 0}).settings.grpc_port == 0
    # the one default that is in the way is overridden too
    assert resolve(None, {}, {"grpc_port": 8000, "http_port": 8001}).settings.http_port == 8001


@pytest.mark.parametrize("text", ["a: [", "- 1", "5", "grpc_port: 1\ngrpc_port: 2", "a: &b 1\nc: *b", "1: 2", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"serve\.yaml"):
        resolve(write(tmp_path, text), {}, {})


def test_a_file_that_cannot_be_read_or_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        resolve(tmp_path / "missing.yaml", {}, {})
    with pytest.raises(UsageError, match="larger than"):
        resolve(write(tmp_path, "#" * 100_000), {}, {})


def test_an_empty_file_and_an_empty_variable_mean_what_they_say(tmp_path: Path) -> None:
    path = write(tmp_path, "max_slots: 2\n")
    assert resolve(write(tmp_path, ""), {}, {}).settings == Settings()
    assert resolve(path, {"HERMES_MAX_SLOTS": ""}, {}).settings.max_slots is None
    with pytest.raises(UsageError, match="HERMES_GRPC_PORT"):
        resolve(None, {"HERMES_GRPC_PORT": ""}, {})


def test_variables_of_others_are_left_alone_and_service_links_explained() -> None:
    links = {
        "HERMES_SERVICE_HOST": "10.0.0.1",
        "HERMES_SERVICE_PORT": "8001",
        "HERMES_SERVICE_PORT_GRPC": "8001",
        "HERMES_PORT": "tcp://10.0.0.1:8001",
        "HERMES_PORT_8001_TCP": "tcp://10.0.0.1:8001",
        "HERMES_PORT_8001_TCP_PORT": "8001",
        "HERMES_DEPLOY_CACHE": "/cache",
    }
    assert resolve(None, links, {}).settings == Settings()
    with pytest.raises(UsageError, match="enableServiceLinks: false"):
        resolve(None, {"HERMES_GRPC_PORT": "tcp://10.0.0.1:8001"}, {})


def test_what_is_shown_is_a_file_that_gives_the_same_settings(tmp_path: Path) -> None:
    found = resolve(None, {"HERMES_QUEUE_LIMIT": "7"}, {"host": "0.0.0.0", "require_signature": "k: #.pem"})
    text = shown(found)
    again = resolve(write(tmp_path, text), {}, {})
    assert again.settings == found.settings
    assert "queue_limit: 7" in text
    assert "# HERMES_QUEUE_LIMIT" in text
    assert set(yaml.safe_load(text)) == set(Settings.model_fields)
    assert shown_as_json(found)["queue_limit"] == {"value": 7, "from": "HERMES_QUEUE_LIMIT"}


def test_a_secret_is_never_shown() -> None:
    secret = "correct horse battery staple"
    found = resolve(None, {"HERMES_ADMIN_SECRET": secret}, {})
    assert secret not in shown(found) + json.dumps(shown_as_json(found)) + repr(found)
    with pytest.raises(UsageError) as refused:
        resolve(None, {"HERMES_ADMIN_SECRET": "hunter2"}, {})
    assert "admin_secret" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_every_setting_stands_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    table = text.partition("| setting |")[2].partition("\n\n")[0]
    assert {name for name in Settings.model_fields if f"`{name}`" not in table} == set()


def test_a_pair_without_a_value_and_a_name_with_dashes() -> None:
    assert from_pairs(["queue-limit=3", "host=a=b"]) == {"queue_limit": "3", "host": "a=b"}
    with pytest.raises(UsageError, match="SETTING=VALUE"):
        from_pairs(["queue_limit"])


def test_python_callers_are_told_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"http_port is 70000.*; grpc is no setting"):
        settings_of({"grpc": 1, "http_port": 70000})


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from([*Settings.model_fields, "other", ""]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers())),
        max_size=4,
    )
)
def test_whatever_is_given_the_answer_is_settings_or_one_usage_error(flags: dict[str, Any]) -> None:
    try:
        assert isinstance(resolve(None, {}, flags).settings, Settings)
    except UsageError as error:
        assert "the settings are wrong:\n" in str(error)
