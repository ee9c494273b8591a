"""The held-out texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hermes_deploy.errors import RequestError
from hermes_deploy.quantization import calibration_chats
from hermes_deploy.verification import Reference, heldout_chats
from hermes_deploy.verification.reference import heldout_sequences


def test_no_text_is_shared_with_calibration() -> None:
    seen = {message["content"] for chat in calibration_chats() for message in chat}
    assert not seen & {message["content"] for chat in heldout_chats() for message in chat}


def test_there_are_about_as_many_positions_as_asked_for(reference: Reference) -> None:
    assert 1000 <= sum(map(len, reference.sequences)) <= 1000 + len(reference.sequences)
    assert len(set(map(len, reference.sequences))) == 1
    assert "held-out positions" in reference.text


class _NoSystem:
    """A template of 2023: a system message is an error."""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        if any(message["role"] == "system" for message in messages):
            raise RequestError("Conversation roles must alternate")
        return list(range(500))


def test_a_template_without_system_messages_is_served_too() -> None:
    sequences = heldout_sequences(_NoSystem(), 900)
    assert len(sequences) == len(heldout_chats())
    assert sum(map(len, sequences)) == 900
