"""Do the ensemble's own steps still step? They have no control socket, so each is asked to do its work once a second.

Busy is not wedged: thousands of pieces may wait for the post step. A step counts as silent only while its own request
is not answered **and** Triton's count of what it has executed stands still. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

from hermes_deploy.protocol.tensors import MESSAGES, MODELS, POSTPROCESS, PREPROCESS, Tensor

_SECONDS = 1.0
"""That one request may take."""


class Pulse:
    """`host`, `port`: Triton's HTTP."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._silent = dict.fromkeys((PREPROCESS, POSTPROCESS), 0.0)
        self._executed: dict[str, Any] = {}
        self._next = 0

    def take(self) -> tuple[str, float]:
        """Asks one of the steps, in turn; takes 2 s at most. The step that is silent for longest, and for how long."""
        model = list(self._silent)[self._next % len(self._silent)]
        self._next += 1
        began = time.monotonic()
        if self._post(model):
            self._silent[model] = 0.0
        else:
            executed = self._count(model)
            moved = executed != self._executed.get(model)
            self._executed[model] = executed
            # a whole turn passes between two looks at the same step
            self._silent[model] = 0.0 if moved else self._silent[model] + len(self._silent) * _elapsed(began)
        return max(self._silent.items(), key=lambda item: item[1])

    def _post(self, model: str) -> bool:
        """Whether it answers, whatever it says."""
        return self._ask("POST", f"/v2/models/{model}/infer", BODIES[model]) is not None

    def _count(self, model: str) -> Any:
        said = self._ask("GET", f"/v2/models/{model}/stats")
        stats = said["model_stats"][0] if said and said.get("model_stats") else {}
        return (stats.get("inference_count"), stats.get("inference_stats", {}).get("fail", {}).get("count"))

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any] | None:
        connection = http.client.HTTPConnection(*self._address, timeout=_SECONDS)
        try:
            connection.request(method, path, body)
            said = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return said if isinstance(said, dict) else {}


def _elapsed(began: float) -> float:
    """Seconds, but no more than a request may take: time in which this process slept does not count."""
    return min(time.monotonic() - began, _SECONDS)


def _input(tensor: Tensor) -> dict[str, Any]:
    value = json.dumps([{"role": "user", "content": "Hi"}]) if tensor.name == MESSAGES.name else ""
    data = [] if tensor.dims == (-1,) else [value if tensor.dtype == "BYTES" else 0]
    return {"name": tensor.name, "datatype": tensor.dtype, "shape": [len(data)], "data": data}


BODIES = {
    model: json.dumps(
        {"inputs": [_input(t) for t in MODELS[model].inputs if not t.optional or t.name == MESSAGES.name]}
    )
    for model in (PREPROCESS, POSTPROCESS)
}
"""A whole request for each of the steps: one short chat, one empty piece."""
