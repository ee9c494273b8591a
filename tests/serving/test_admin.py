"""What changes the server or reaches into the machine is shut; and what is set reaches the engine."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from hermes_deploy.client import Client, ClientError
from hermes_deploy.serving import Server

ADMIN = {
    "repository/index": b"{}",
    "repository/models/hermes/unload": b"{}",
    "repository/models/hermes/load": b"{}",
    "systemsharedmemory/status": None,
    "systemsharedmemory/region/x/register": b'{"key": "/x", "offset": 0, "byte_size": 8}',
    "cudasharedmemory/status": None,
    "trace/setting": None,
    "logging": b'{"log_verbose_level": 4}',
}
"""Path -> body of a POST, None for a GET."""
SECRET = "a value that nobody guesses"

CALLS: list[Callable[[triton.InferenceServerClient, dict[str, str]], Any]] = [
    lambda raw, headers: raw.get_model_repository_index(headers=headers),
    lambda raw, headers: raw.unload_model("hermes", headers=headers),
    lambda raw, headers: raw.get_system_shared_memory_status(headers=headers),
    lambda raw, headers: raw.register_system_shared_memory("x", "/x", 8, headers=headers),
    lambda raw, headers: raw.get_trace_settings(headers=headers),
    lambda raw, headers: raw.update_log_settings({"log_verbose_level": 4}, headers=headers),
]


def http_status(server: Server, path: str, headers: dict[str, str]) -> int:
    request = urllib.request.Request(f"{server.endpoints.http}/v2/{path}", ADMIN.get(path), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def test_admin_endpoints_are_shut_and_what_clients_need_is_open(server: Server) -> None:
    for headers in ({}, {"hermes-admin": ""}, {"hermes-admin": SECRET}):
        assert {path: http_status(server, path, headers) for path in ADMIN} == dict.fromkeys(ADMIN, 403)
    for path in ("health/live", "health/ready", "models/hermes", "models/hermes/config", "models/hermes/stats"):
        assert http_status(server, path, {}) == 200
    with triton.InferenceServerClient(server.endpoints.grpc) as raw:
        for call in CALLS:
            for headers in ({}, {"triton-grpc-protocol-hermes-admin": SECRET}):
                with pytest.raises(InferenceServerException, match="restricted"):
                    call(raw, headers)
        assert raw.is_server_ready()
        assert raw.get_model_metadata("hermes").name == "hermes"


def test_a_secret_opens_them_and_limits_reach_the_engine(artifact: Path) -> None:
    limits = {"max_slots": 1, "queue_limit": 1}
    with Server(artifact, grpc_port=0, http_port=0, metrics_port=0, admin_secret=SECRET, **limits) as server:
        assert http_status(server, "repository/index", {"hermes-admin": SECRET}) == 200
        assert http_status(server, "repository/index", {"hermes-admin": SECRET + "x"}) == 403
        with triton.InferenceServerClient(server.endpoints.grpc) as raw:
            assert raw.get_trace_settings(headers={"triton-grpc-protocol-hermes-admin": SECRET})
        with Client(server.endpoints.grpc) as client, ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(client.ask, "hello", max_tokens=3000) for _ in range(4)]
            failed = [error for error in (each.exception(60) for each in asked) if error is not None]
    assert [type(error) for error in failed] == [type(failed[0])] * 2
    assert isinstance(failed[0], ClientError)
    assert "(slots: 1, queue: 1)" in str(failed[0])
