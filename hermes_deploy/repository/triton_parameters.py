"""Names of the parameters in hermes_engine's config.pbtxt. Standard library only: the model reads them too."""

from __future__ import annotations

MAX_CONTEXT = "max_context"
MAX_SLOTS = "max_slots"
TARGET = "target"
