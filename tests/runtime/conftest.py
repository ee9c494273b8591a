"""The token loop is tested with engines whose calls take turns and with those whose calls may overlap."""

from __future__ import annotations

import pytest

from tests.runtime.fake_session import FakeSession


@pytest.fixture(params=[False, True], ids=["turns", "overlaps"])
def overlaps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """For a whole file: `pytestmark = pytest.mark.usefixtures("overlaps")`."""
    chosen: bool = request.param
    monkeypatch.setattr(FakeSession, "OVERLAPS", chosen)
    return chosen
