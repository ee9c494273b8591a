"""Names of the parameters in config.pbtxt, most of them hermes_engine's. Standard library only: models read them."""

from __future__ import annotations

MAX_CONTEXT = "max_context"
"""Of chatml_preprocess as well."""
MAX_SLOTS = "max_slots"
TARGET = "target"
QUEUE_LIMIT = "queue_limit"
ENGINE_TIMEOUT = "engine_timeout"
STRETCH = "stretch"
SPECULATION = "speculation"
"""true or false."""
PIECE_INTERVAL = "piece_interval"
CONTROL = "control"
"""Path of the control socket."""
REQUEST_LOG = "request_log"
"""Path of the pipe for lines about requests; the first step of the ensemble has it too."""
OWN_KERNELS = "own_kernels"
"""true or false."""
LOG_CONTENT = "log_content"
"""There when prompts and answers are to be logged.

The last nine are written when the artifact is served, not when it is built."""
