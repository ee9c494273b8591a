"""The chats that calibration runs over: those that ship, and a file that a person brings."""

from __future__ import annotations

import pytest

from hermes_deploy.errors import QuantizationError
from hermes_deploy.quantization import calibration_chats


def test_the_shipped_chats_are_well_formed_and_enough_for_the_recipes() -> None:
    chats = calibration_chats()
    assert len(chats) >= 8
    for chat in chats:
        roles = [message["role"] for message in chat if message["role"] != "system"]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
        assert all(message["content"] for message in chat)
    with pytest.raises(QuantizationError, match="ship with the package"):
        calibration_chats(1000)
