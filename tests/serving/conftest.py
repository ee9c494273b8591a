"""One tiny artifact and one running Triton for the whole folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from hermes_deploy.client import Client
from hermes_deploy.serving import Server
from tests.serving.artifact import make_artifact


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def server(artifact: Path) -> Iterator[Server]:
    with Server(artifact, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[Client]:
    with Client(server.endpoints.grpc) as connected:
        yield connected


@pytest.fixture
def raw(server: Server) -> Iterator[triton.InferenceServerClient]:
    """Triton's own client: what our SDK would refuse to send can be sent with it."""
    with triton.InferenceServerClient(server.endpoints.grpc) as connected:
        yield connected
