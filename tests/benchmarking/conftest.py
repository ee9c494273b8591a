"""One tiny artifact for the whole folder, opened once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from hermes_deploy.benchmarking import Sizes, open_artifact
from hermes_deploy.benchmarking.run import Opened
from hermes_deploy.runtime.session import Session
from tests.serving.artifact import make_artifact

TINY = Sizes(prefill=200, contexts=(160, 200), decoded=32, history=260, answer=4, full=False)
"""The template and the system message alone are about 130 bytes, and each is a token of the tiny model."""


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def opened(artifact: Path) -> Opened:
    return open_artifact(artifact)


class SlowSession:
    """A session whose decode takes 3 ms more: a receiver sees the tokens of the tiny model one by one."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.slots, self.max_context, self.vocab_size = session.slots, session.max_context, session.vocab_size
        self.prefill_chunk, self.cache_token_bytes = session.prefill_chunk, session.cache_token_bytes
        self.overlaps, self.draft_tokens = session.overlaps, session.draft_tokens
        self.prefill, self.copy, self.close = session.prefill, session.copy, session.close

    def decode(
        self, slots: Sequence[int], tokens: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        time.sleep(0.003)
        return self._session.decode(slots, tokens, positions)


def slow(opened: Opened) -> Opened:
    """The same artifact on slow sessions."""
    return dataclasses.replace(
        opened, open_session=lambda slots, max_context: SlowSession(opened.open_session(slots, max_context))
    )
