"""Ours: the token loop over an artifact's session, as the server runs it. `hermes_worker.py ARTIFACT`"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from serving import Arrived, serve


class Hermes:
    keeps = True

    def __init__(self, artifact: Path) -> None:
        self._artifact = artifact

    def load(self) -> dict[str, str]:
        from hermes_deploy import __version__
        from hermes_deploy.benchmarking import open_artifact

        opened = open_artifact(self._artifact)
        self._door = opened.in_process()
        self._graph = self._artifact / "hermes_engine" / "1" / "cpu" / "model.onnx"
        return {"version": f"hermes-deploy {__version__}, recipe {opened.facts()['artifact']['recipe']}"}

    def ask(self, prompts: Sequence[Sequence[int]], max_tokens: int, arrived: Arrived) -> None:
        import threading

        from hermes_deploy.runtime.stream import Generation

        streams = self._door.loop.submit_all([Generation(np.array(ids), max_tokens) for ids in prompts])

        def listen(which: int) -> None:
            while True:
                delta = streams[which].take(60.0)
                if delta is None:
                    raise TimeoutError("no token came for a minute")
                for token in delta.token_ids:
                    arrived(which, token)
                if delta.error is not None:
                    raise delta.error
                if delta.finish is not None:
                    return

        if len(streams) == 1:
            return listen(0)
        threads = [threading.Thread(target=listen, args=(which,)) for which in range(len(streams))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return None

    def logits(self, sequence: Sequence[int]) -> npt.NDArray[np.float32]:
        from hermes_deploy.verification.candidate import Candidate

        pieces = Candidate(self._graph, len(sequence)).answers([sequence])
        return np.concatenate([logits.copy() for _, _, logits in pieces])


if __name__ == "__main__":
    serve(Hermes(Path(sys.argv[1])))
