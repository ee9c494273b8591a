"""Is the server really ready: one token, generated through each door, over HTTP.

Triton's own readiness stays green when a model process is dead, so it is only asked first.
Standard library only.
"""

from __future__ import annotations

import http.client
import json

_MESSAGES = json.dumps([{"role": "user", "content": "Hi"}])


def says_ready(host: str, port: int, timeout: float = 2.0) -> bool:
    """Triton's readiness: all models are loaded."""
    return _status(host, port, "/v2/health/ready", timeout) == 200


def answers(host: str, port: int, timeout: float) -> bool:
    """Whether Triton's HTTP front answers, whatever it says: more its liveness does not tell."""
    return _status(host, port, "/v2/health/live", timeout) is not None


def _status(host: str, port: int, path: str, timeout: float) -> int | None:
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def generates(host: str, port: int, model: str, timeout: float) -> str:
    """Empty when `model` generated one token within `timeout` seconds, else why not."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    body = json.dumps({"messages": _MESSAGES, "max_tokens": 1, "temperature": 0.0})
    try:
        connection.request("POST", f"/v2/models/{model}/generate_stream", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    if answer.status != 200:
        return f"HTTP {answer.status}: {text[:500]}"
    # a stream of "data: {...}" events; the last one says how it ended
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    if not events or events[-1].get("finish_reason") not in ("length", "stop"):
        return f"it answered: {text[:500]}"
    return ""
