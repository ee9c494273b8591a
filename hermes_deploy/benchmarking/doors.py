"""The ways to an answer that are compared: the token loop in this process, and the two doors of a server.

`ask` starts answers and gives a `Listener` each. All are greedy and, unless `stops`, go on to `max_tokens`
whatever the model says, so that what is timed has the same length every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

from hermes_deploy.benchmarking.listening import Listener, Piece, Pieces
from hermes_deploy.benchmarking.prompts import Prompt
from hermes_deploy.client import Client, Door
from hermes_deploy.repository.engine_config import EngineConfig
from hermes_deploy.runtime.session import Session
from hermes_deploy.runtime.stream import Generation, TokenStream
from hermes_deploy.runtime.token_loop import TokenLoop
from hermes_deploy.serving.sessions import open_session

DoorName = Literal["in-process", "chat", "ensemble"]
DOORS: tuple[DoorName, ...] = get_args(DoorName)
_POLL = 0.5
"""Seconds after which a listener to a silent stream looks whether it was cancelled."""


class Answers(Protocol):
    name: DoorName

    def ask(self, prompts: Sequence[Prompt], max_tokens: int, *, stops: bool = False) -> list[Listener]:
        """Starts an answer to each of `prompts`. `stops`: the model's own stop tokens end it."""
        ...


class InProcess:
    """A token loop over `session`, as the server has one. Closes both.

    Without `speculation`, which is what most measures want: a step of the engine, not how much a text repeats itself.
    """

    name: DoorName = "in-process"

    def __init__(self, session: Session, stop_ids: Sequence[int], *, speculation: bool = False) -> None:
        self.stop_ids = frozenset(stop_ids)
        self.loop = TokenLoop(session, speculation=speculation)

    def ask(self, prompts: Sequence[Prompt], max_tokens: int, *, stops: bool = False) -> list[Listener]:
        stop_ids = self.stop_ids if stops else frozenset[int]()
        now = time.monotonic()
        # each for itself, as requests come: the receivers of streams of one `submit_all` wake each other
        streams = [self.loop.submit(Generation(prompt.ids, max_tokens, stop_ids=stop_ids)) for prompt in prompts]
        return [Listener(taken(stream), now) for stream in streams]

    def close(self) -> None:
        self.loop.close()


class Served:
    """A door of a running server. Each answer is a gRPC stream that a thread of its own opens and reads."""

    def __init__(self, client: Client, door: Door) -> None:
        self.name: DoorName = door
        self._client = client
        self._door = door

    def ask(self, prompts: Sequence[Prompt], max_tokens: int, *, stops: bool = False) -> list[Listener]:
        return [Listener(self._asked(prompt, max_tokens, stops)) for prompt in prompts]

    def _asked(self, prompt: Prompt, max_tokens: int, stops: bool) -> Pieces:
        def pieces() -> Generator[Piece, None, None]:
            with self._client.stream(
                prompt.messages,
                max_tokens=max_tokens,
                temperature=0.0,
                repetition_penalty=1.0,
                ignore_eos=not stops,
                door=self._door,
            ) as stream:
                for piece in stream:
                    yield Piece(piece.token_ids, piece.usage.cached_tokens)

        return pieces


def session_opener(folder: Path, config: EngineConfig, target: str) -> Callable[[int, int], Session]:
    """(slots, max_context) -> a session of the artifact whose hermes_engine/1 is `folder`."""

    def open_it(slots: int, max_context: int) -> Session:
        return open_session(config, target, folder, slots=slots, max_context=max_context)

    return open_it


def taken(stream: TokenStream) -> Pieces:
    """The pieces of a stream of the token loop. Raises the RequestError that it ends with; cancels it when closed."""

    def pieces() -> Generator[Piece, None, None]:
        try:
            while True:
                delta = stream.take(_POLL)
                if delta is None:
                    yield Piece(())
                    continue
                yield Piece(delta.token_ids, delta.reused_tokens)
                if delta.error is not None:
                    raise delta.error
                if delta.finish is not None:
                    return
        finally:
            stream.cancel()

    return pieces
