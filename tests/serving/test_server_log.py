"""A person reads the cause once, not Triton's five lines about it."""

from __future__ import annotations

import io

from hermes_deploy.serving.server_log import last_words

LOG = r"""I1123 00:57:19.1 1 server.cc:1] "fine"
E1123 00:57:19.832132 1 server.cc:241] "CudaDriverHelper has not been initialized."
E1123 00:57:21.630245 1 backend_model.cc:692] "ERROR: Failed to create instance: ArtifactError: no graph.\n\nAt:\n  x.py(1): f\n"
E1123 00:57:21.630387 1 model_lifecycle.cc:642] "failed to load 'e' version 1: Internal: ArtifactError: no graph.\n\nAt:\n  x.py(1): f\n"
guard: model process 7 died; Triton does not restart it. Stopping.
"""  # noqa: E501


def test_the_cause_is_told_once_and_noise_is_left_out() -> None:
    assert last_words(io.BytesIO(LOG.encode())) == (
        "ArtifactError: no graph.\nguard: model process 7 died; Triton does not restart it. Stopping."
    )


def test_a_log_without_errors_is_shown_as_it_ends() -> None:
    log = "".join(f"line {n}\n" for n in range(100))
    assert last_words(io.BytesIO(log.encode())).splitlines() == [f"line {n}" for n in range(85, 100)]
    assert last_words(io.BytesIO()) == ""
