"""A fake Triton and a client on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hermes_deploy.client import Client
from tests.client.fake_triton import FakeTriton


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    with FakeTriton() as server:
        yield server


@pytest.fixture
def client(triton: FakeTriton) -> Iterator[Client]:
    with Client(triton.url) as opened:
        yield opened
