"""The continuous batcher: one thread that steps a Session for every chat that holds a slot.

Takes `Generation`s, gives `TokenStream`s. Each step: admit -> one prefill chunk -> one batched
decode -> deliver. Cancellation is looked at every step. The queue is bounded: over it, `submit`
raises RequestError RESOURCE_EXHAUSTED at once. An engine call that fails, or gives logits that
are not numbers, ends the requests that were in it with the cause; the loop goes on. Should the
loop itself die, everything in flight and every later `submit` is told so: nothing ever hangs.
"""

from __future__ import annotations

import itertools
import threading
import traceback
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.sampling import pick
from hermes_deploy.runtime.schedule import Chunk, Running, Step, plan_step
from hermes_deploy.runtime.session import Session
from hermes_deploy.runtime.stream import Finish, Generation, TokenStream


@dataclass
class _Chat:
    key: int
    asked: Generation
    stream: TokenStream
    generator: np.random.Generator
    slot: int = -1
    prefilled: int = 0
    generated: int = 0
    last: int = field(default=-1)
    """The newest token: not in the cache yet, the next decode writes it."""

    @property
    def prompt(self) -> int:
        return len(self.asked.prompt)


class TokenLoop:
    """Owns `session` and closes it. `queue_limit`: requests that may wait for a slot."""

    def __init__(self, session: Session, *, queue_limit: int = 64) -> None:
        self._session = session
        self._queue_limit = queue_limit
        self._changed = threading.Condition()
        self._waiting: deque[_Chat] = deque()
        self._running: dict[int, _Chat] = {}
        self._keys = itertools.count()
        self._closing = False
        self._dead: str | None = None
        self._thread = threading.Thread(target=self._run, name="token-loop", daemon=True)
        self._thread.start()

    def submit(self, asked: Generation) -> TokenStream:
        """Queues a request. Raises RequestError when it can never run, or not now (see `code`)."""
        self._check(asked)
        chat = _Chat(next(self._keys), asked, TokenStream(), asked.sampling.generator())
        with self._changed:
            if self._dead is not None:
                raise RequestError(f"the engine is dead: {self._dead}. Restart the server.", "UNAVAILABLE")
            if self._closing:
                raise RequestError("the server is shutting down", "UNAVAILABLE")
            room = self._session.slots - len(self._running)
            if len(self._waiting) >= self._queue_limit + max(0, room):
                raise RequestError(
                    f"{len(self._running)} chats are running and {len(self._waiting)} are waiting, "
                    f"which is all that this server takes (slots: {self._session.slots}, "
                    f"queue: {self._queue_limit}). Try again later.",
                    "RESOURCE_EXHAUSTED",
                )
            self._waiting.append(chat)
            self._changed.notify()
        return chat.stream

    def close(self) -> None:
        """Ends what is in flight with an error, stops the thread, closes the session."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _check(self, asked: Generation) -> None:
        length, context = len(asked.prompt), self._session.max_context
        if length == 0:
            raise RequestError("the prompt has no tokens; give at least one")
        if length >= context:
            raise RequestError(
                f"the prompt has {length} tokens; the context of this server is {context} tokens, of which "
                f"at least one is for the answer, so a prompt may have at most {context - 1}",
                "OUT_OF_RANGE",
            )
        if asked.max_tokens < 1:
            raise RequestError(f"max_tokens is {asked.max_tokens}; allowed is 1 or more")
        low, high = int(asked.prompt.min()), int(asked.prompt.max())
        if low < 0 or high >= self._session.vocab_size:
            raise RequestError(
                f"the prompt holds token id {low if low < 0 else high}; "
                f"this model has ids 0 to {self._session.vocab_size - 1}"
            )

    def _run(self) -> None:
        cause = "it was closed"
        try:
            while self._await_work():
                self._step()
        except Exception as error:  # the thread ends here: whoever waits must hear of it, whatever it was
            cause = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        finally:
            self._bury(cause)
            self._session.close()

    def _await_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or self._running)
            return not self._closing

    def _bury(self, cause: str) -> None:
        with self._changed:
            if not self._closing:
                self._dead = cause
            why = "the server is shutting down" if self._closing else f"the engine died: {cause}. Restart the server."
            chats = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
        for chat in chats:
            chat.stream.end("error", RequestError(why, "UNAVAILABLE"))

    def _step(self) -> None:
        self._drop_cancelled()
        step = self._plan()
        if step.prefill is not None:
            self._prefill(self._running[step.prefill.key], step.prefill)
        if step.decode:
            self._decode([self._running[key] for key in step.decode])

    def _drop_cancelled(self) -> None:
        with self._changed:
            gone = [chat for chat in self._waiting if chat.stream.cancelled]
            for chat in gone:
                self._waiting.remove(chat)
        for chat in gone:
            chat.stream.end("cancelled")
        for chat in [chat for chat in self._running.values() if chat.stream.cancelled]:
            self._end(chat, "cancelled")

    def _plan(self) -> Step:
        with self._changed:
            running = [Running(c.key, c.slot, c.prompt, c.prefilled) for c in self._running.values()]
            waiting = [(chat.key, chat.prompt) for chat in self._waiting]
            step = plan_step(waiting, running, self._session.slots, self._session.prefill_chunk)
            for key, slot in step.admit:
                chat = self._waiting.popleft()
                assert chat.key == key, "plan_step admits in the order of waiting"
                chat.slot = slot
                self._running[key] = chat
        return step

    def _prefill(self, chat: _Chat, chunk: Chunk) -> None:
        tokens = chat.asked.prompt[chunk.start : chunk.start + chunk.count]
        try:
            logits = self._session.prefill(chunk.slot, tokens, chunk.start)
        except Exception as error:  # whatever the engine raises belongs to this request, not to the loop
            self._fail(chat, f"the engine failed on the prompt: {type(error).__name__}: {error}")
            return
        chat.prefilled += chunk.count
        if chat.prefilled == chat.prompt:
            self._advance([chat], logits[np.newaxis])

    def _decode(self, chats: list[_Chat]) -> None:
        slots = [chat.slot for chat in chats]
        tokens = np.array([chat.last for chat in chats], dtype=np.int64)
        positions = np.array([chat.prompt + chat.generated - 1 for chat in chats], dtype=np.int64)
        try:
            logits = self._session.decode(slots, tokens, positions)
        except Exception as error:  # as above: all that were in this call, and nobody else
            for chat in chats:
                self._fail(chat, f"the engine failed while decoding: {type(error).__name__}: {error}")
            return
        self._advance(chats, logits)

    def _advance(self, chats: list[_Chat], logits: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
        """Picks, delivers and ends. `logits` [len(chats), vocab]."""
        ids = pick(logits, [chat.asked.sampling for chat in chats], [chat.generator for chat in chats])
        for chat, token in zip(chats, ids.tolist(), strict=True):
            if token < 0:
                where = f"position {chat.prompt + chat.generated}"
                self._fail(chat, f"the engine gave logits that are not finite at {where}; the engine is damaged")
            elif token in chat.asked.stop_ids:
                self._end(chat, "stop")
            else:
                chat.last = token
                chat.generated += 1
                chat.stream.put(token)
                if chat.generated >= chat.asked.max_tokens or chat.prompt + chat.generated >= self._session.max_context:
                    self._end(chat, "length")

    def _fail(self, chat: _Chat, message: str) -> None:
        self._end(chat, "error", RequestError(message, "INTERNAL"))

    def _end(self, chat: _Chat, finish: Finish, error: RequestError | None = None) -> None:
        with self._changed:
            del self._running[chat.key]
        chat.stream.end(finish, error)
