"""The ensemble's steps are asked to work: a step that works answers, one that is busy counts, one that is stuck is
told."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hermes_deploy.protocol.tensors import POSTPROCESS, PREPROCESS
from hermes_deploy.serving import Server
from hermes_deploy.serving.pulse import BODIES, Pulse


def test_the_real_steps_do_what_they_are_asked(server: Server) -> None:
    for model in (PREPROCESS, POSTPROCESS):
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
        connection.request("POST", f"/v2/models/{model}/infer", BODIES[model])
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        assert json.loads(answer.read())["outputs"]
        connection.close()
    pulse = Pulse("127.0.0.1", server.http_port)
    assert [pulse.take()[1] for _ in range(4)] == [0.0] * 4


class Stuck(BaseHTTPRequestHandler):
    """A Triton whose post step answers nothing; `executed` is what it says that it has done."""

    executed = 0
    busy = False

    def do_POST(self) -> None:
        if POSTPROCESS in self.path:
            self.server.released.wait(10)  # type: ignore[attr-defined]
        self._say({})

    def do_GET(self) -> None:
        type(self).executed += self.busy
        self._say({"model_stats": [{"inference_count": self.executed}]})

    def _say(self, said: object) -> None:
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def stuck() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stuck)
    server.handle_error = lambda *_: None  # type: ignore[assignment]
    server.released = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_a_step_is_stuck_when_it_neither_answers_nor_counts(stuck: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermes_deploy.serving.pulse._SECONDS", 0.2)
    pulse = Pulse("127.0.0.1", stuck)
    seen = [pulse.take() for _ in range(6)]
    assert seen[-1][0] == POSTPROCESS
    assert seen[-1][1] == pytest.approx(0.8)
    Stuck.busy = True
    assert pulse.take() == seen[-1], "the other step's turn"
    assert pulse.take()[1] == 0.0, "busy is not stuck"
