"""No test reads or fills the stage cache of who runs it. Downloads (the demo model) stay shared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def stages_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HERMES_DEPLOY_STAGES", str(tmp_path_factory.mktemp("stages")))
        yield
