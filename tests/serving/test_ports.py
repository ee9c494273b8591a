"""A port that cannot be had is refused before anything starts, with its owner where that may be known."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from hermes_deploy.errors import ServeError, UsageError
from hermes_deploy.serving.ports import claim_ports, resolve_host


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


def test_a_port_in_use_names_its_owner_and_the_flag_to_change(taken: int) -> None:
    with pytest.raises(ServeError) as refused:
        claim_ports("127.0.0.1", {"grpc": 0, "http": taken, "metrics": 0})
    message = str(refused.value)
    assert f"http port {taken} is in use by " in message
    assert f"(pid {os.getpid()})" in message
    assert "--http-port" in message


def test_a_port_in_use_on_every_interface_is_in_use_here_too(taken: int) -> None:
    with pytest.raises(ServeError, match="is in use"):
        claim_ports("0.0.0.0", {"grpc": taken})


def test_zero_becomes_a_free_port_of_its_own() -> None:
    ports = claim_ports("127.0.0.1", {"grpc": 0, "http": 0, "metrics": 0})
    assert list(ports) == ["grpc", "http", "metrics"]
    assert len(set(ports.values())) == 3
    assert 0 not in ports.values()


def test_the_same_port_twice_is_refused() -> None:
    free = claim_ports("127.0.0.1", {"grpc": 0})["grpc"]
    with pytest.raises(UsageError, match=f"http and grpc ports are both {free}"):
        claim_ports("127.0.0.1", {"grpc": free, "http": free})


def test_a_host_that_is_not_this_machine_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        claim_ports("192.0.2.1", {"grpc": 0})


def test_a_name_becomes_the_address_that_triton_takes() -> None:
    assert resolve_host("localhost") == "127.0.0.1"
    with pytest.raises(UsageError, match="no IPv4 address"):
        resolve_host("no.such.host.invalid")
