"""The token loop's numbers on a real Triton's metrics endpoint."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path

import pytest

from hermes_deploy.client import Client, InvalidRequest
from hermes_deploy.serving import Server
from hermes_deploy.serving.metrics import FAMILIES

SERIES = re.compile(r"^(hermes_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


def scrape(server: Server) -> dict[str, float]:
    """Value by `name{labels}`."""
    with urllib.request.urlopen(server.endpoints.metrics, timeout=10) as answer:
        text = answer.read().decode()
    return {f"{name}{{{labels}}}" if labels else name: float(value) for name, labels, value in SERIES.findall(text)}


def eventually(server: Server, name: str, least: float) -> dict[str, float]:
    """The first scrape in which `name` has reached `least`: they are copied once a second."""
    deadline = time.monotonic() + 10
    while True:
        seen = scrape(server)
        if seen[name] >= least or time.monotonic() > deadline:
            assert seen[name] >= least, seen
            return seen
        time.sleep(0.1)


def test_every_series_is_there_and_in_the_document(server: Server) -> None:
    seen = scrape(server)
    document = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        assert any(name.split("{")[0] == family.name for name in seen), family.name
        assert f"`{re.sub('_(bucket|sum|count)$', '', family.name)}`" in document
    assert seen["hermes_healthy"] == 1
    assert seen['hermes_requests_rejected_total{reason="queue_full"}'] == 0


def test_an_answer_and_a_refusal_are_counted(server: Server, client: Client) -> None:
    before = scrape(server)
    client.ask("Hello", max_tokens=7, temperature=0)
    with pytest.raises(InvalidRequest):
        client.ask("Hello", max_tokens=7, stop_token_ids=[99_999])
    rejected = 'hermes_requests_rejected_total{reason="invalid"}'
    eventually(server, rejected, before[rejected] + 1)
    seen = eventually(server, "hermes_output_tokens_total", before["hermes_output_tokens_total"] + 7)
    for name, least in (
        ("hermes_time_to_first_token_seconds_count", 1),
        ("hermes_inter_token_latency_seconds_count", 6),
        ('hermes_inter_token_latency_seconds_bucket{le="+Inf"}', 6),
        ("hermes_prompt_tokens_total", 5),
    ):
        assert seen[name] >= before[name] + least, name
    assert seen["hermes_inter_token_latency_seconds_sum"] > before["hermes_inter_token_latency_seconds_sum"]
