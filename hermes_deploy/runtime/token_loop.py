"""The continuous batcher: one thread that steps a Session for every chat that holds a slot.

Takes `Generation`s, gives `TokenStream`s. Each step: end what was cancelled or is late -> admit -> one
prefill chunk -> one batched decode -> deliver. Where the engine's calls may overlap, a chunk is read beside
the decodes instead of between them (`Reading`). The queue is bounded: over it, `submit` raises RequestError
RESOURCE_EXHAUSTED at once.

Nothing ever hangs. An engine call that fails, or gives logits that are not numbers, ends the requests that
were in it with the cause, and the loop goes on. After some failures without a success between them, after
a call that does not come back, or should the loop itself fail, the loop is dead: everything in
flight and every later `submit` is told why, and `on_death` is called.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from hermes_deploy.errors import RequestError
from hermes_deploy.runtime.admission import check
from hermes_deploy.runtime.drafter import Drafter
from hermes_deploy.runtime.guarded_session import EngineFailed, GuardedSession
from hermes_deploy.runtime.metrics import REJECTIONS, Metrics
from hermes_deploy.runtime.pace import STRETCH
from hermes_deploy.runtime.reader import Read
from hermes_deploy.runtime.reading import Reading
from hermes_deploy.runtime.running_chat import Chat, Progress, sampler_of
from hermes_deploy.runtime.sampling import (
    CONSTRAINT_FAILED,
    NOT_FINITE,
    NOTHING_ALLOWED,
    TokenLogprobs,
    pick,
    prompt_logprobs,
)
from hermes_deploy.runtime.scheduler import Copy, Scheduler, Ticket
from hermes_deploy.runtime.session import Session
from hermes_deploy.runtime.speculation import MOST, draft_of
from hermes_deploy.runtime.stream import Finish, Generation, TokenStream

_FAILURES = 3
"""Engine calls that fail in a row before the engine is given up."""


class TokenLoop:
    """Owns `session` and closes it. `queue_limit`: requests that may wait for a slot.

    `stretch`: see `Pace`. `engine_timeout`: seconds after which a call of the engine counts as hanging.
    `speculation`: what repeats is guessed and checked several tokens a step, where the engine can and one chat runs.
    `on_death`: called once, with the cause, from whichever thread found it.
    """

    def __init__(
        self,
        session: Session,
        *,
        queue_limit: int = 64,
        stretch: float = STRETCH,
        engine_timeout: float = 120.0,
        speculation: bool = True,
        on_death: Callable[[str], None] | None = None,
    ) -> None:
        self._session = session
        self._queue_limit = queue_limit
        self._on_death = on_death
        self._scheduler = Scheduler(session.slots, session.max_context)
        self._chats: dict[int, Chat] = {}
        self._keys = itertools.count()
        self._changed = threading.Condition()
        self._closing = False
        self._draining: str | None = None
        self._dead: str | None = None
        self._worthless = 0
        """Decodes in a row of which no row was finite."""
        self.metrics = Metrics(free_slots=session.slots, kv_capacity_tokens=session.slots * session.max_context)
        self._engine = GuardedSession(session, engine_timeout, self._die)
        self._reading = Reading(
            self._engine,
            self._scheduler,
            self.metrics,
            session.prefill_chunk,
            stretch=stretch,
            overlaps=session.overlaps,
        )
        self._most_drafted = min(MOST, session.draft_tokens) if speculation else 0
        self._waited = 0.0
        """Seconds in the queue of who got a slot last: after half of that, half of those who wait now have theirs."""
        self._thread = threading.Thread(target=self._run, name="token-loop", daemon=True)
        self._thread.start()

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together."""
        return self._session.max_context

    @property
    def dead(self) -> str | None:
        """Why the loop has ended, None while it runs."""
        return self._dead

    @property
    def queue_limit(self) -> int:
        return self._queue_limit

    @property
    def progress(self) -> Progress:
        """Whether it gets on, for whoever watches from another thread."""
        engine, now = self._engine, self.metrics
        return Progress(
            dead=self._dead,
            draining=self._draining is not None,
            active=now.active_slots,
            waiting=now.queue_depth,
            calls=engine.calls,
            in_call=engine.in_call,
            longest_call=engine.longest,
        )

    @property
    def slots(self) -> int:
        return self._session.slots

    def submit(self, asked: Generation) -> TokenStream:
        """Queues a request. Raises RequestError when it can never run, or not now (see `code`)."""
        return self.submit_all([asked])[0]

    def submit_all(self, asked: Sequence[Generation]) -> list[TokenStream]:
        """Queues several requests, all or none of them. Their streams can be waited for together (`take_any`)."""
        try:
            return self._submit(asked)
        except RequestError as error:
            self.count_refusal(error)
            raise

    def count_refusal(self, error: RequestError) -> None:
        """A request was refused, here or before it came here."""
        with self._changed:
            self.metrics.rejections[REJECTIONS.get(error.code, "invalid")] += 1

    def check_room(self) -> None:
        """Raises what `submit` would for want of room, or of an engine: before work is put into reading a request."""
        with self._changed:
            self._check_room(1)

    def drain(self, why: str) -> None:
        """Refuses every later request with UNAVAILABLE and `why`; what was taken goes on."""
        self._draining = why

    def end(self, why: str) -> None:
        """Ends what is in flight with UNAVAILABLE and `why`, also while a call of the engine hangs."""
        with self._changed:
            chats = list(self._chats.values())
        for chat in chats:
            chat.stream.end("error", RequestError(why, "UNAVAILABLE"))
            chat.stream.cancel("error")  # its slot is free at the next step

    def close(self) -> None:
        """Ends what is in flight with an error, stops the thread, closes the session."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        while self._thread.is_alive() and self._dead is None:
            self._thread.join(0.1)

    def _submit(self, asked: Sequence[Generation]) -> list[TokenStream]:
        for one in asked:
            check(one, self._session.vocab_size, self._session.max_context)
        changed = threading.Condition()
        now = time.monotonic()
        chats = [
            Chat(next(self._keys), one, TokenStream(changed), sampler_of(one, self._session.vocab_size), now)
            for one in asked
        ]
        with self._changed:
            self._check_room(len(chats))
            for chat in chats:
                one = chat.asked
                self._chats[chat.key] = chat
                # what is in the cache already gives no logits
                reuse = one.prompt_logprobs is None
                self._scheduler.submit(Ticket(chat.key, one.prompt, one.client, one.priority, reuse))
            self._gauge()
            self._changed.notify()
        return [chat.stream for chat in chats]

    def _check_room(self, more: int) -> None:
        if self._dead is not None:
            raise RequestError(f"the engine is dead: {self._dead}. Restart the server.", "UNAVAILABLE")
        if self._closing or self._draining is not None:
            raise RequestError(self._draining or "the server is shutting down", "UNAVAILABLE")
        running, waiting = len(self._scheduler.running), len(self._scheduler.waiting)
        if waiting + more > self._queue_limit + self._session.slots - running:
            raise RequestError(
                f"{running} chats are running and {waiting} are waiting, "
                f"which is all that this server takes (slots: {self._session.slots}, "
                f"queue: {self._queue_limit}). Retry after {max(1, math.ceil(self._waited / 2))} s.",
                "RESOURCE_EXHAUSTED",
            )

    def _run(self) -> None:
        try:
            while self._await_work():
                self._step()
            self._end_all("the server is shutting down")
        except Exception as error:  # the thread ends here: whoever waits must hear of it, whatever it was
            traceback.print_exc()
            self._die(f"{type(error).__name__}: {error}")
        finally:
            self._reading.close()
            self._engine.close()

    def _await_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._dead or self._chats)
            return not self._closing and self._dead is None

    def _die(self, cause: str) -> None:
        with self._changed:
            if self._dead is not None:
                return
            self._dead = cause
            self.metrics.healthy = 0
            closing = self._closing
        self._end_all(f"the engine died: {cause}. Restart the server.")
        if self._on_death is not None and not closing:
            self._on_death(cause)

    def _end_all(self, why: str) -> None:
        with self._changed:
            chats = list(self._chats.values())
            self._chats.clear()
            self.metrics.endings["error"] += len(chats)
            self.metrics.queue_depth = self.metrics.active_slots = self.metrics.kv_tokens = 0
        for chat in chats:
            chat.stream.end("error", RequestError(why, "UNAVAILABLE"))

    def _step(self) -> None:
        began, in_engine = time.monotonic(), self._engine.seconds
        # first of all: between two of its chunks a chat can be ended
        if (read := self._reading.take()) is not None:
            self._read_in(read)
        self._end_early()
        with self._changed:
            admitted = self._scheduler.admissions()
            self._scheduler.admit(admitted)
            self._gauge()
        for admission in admitted:
            entered = self._chats[admission.key]
            entered.stream.admitted = time.monotonic()
            self._waited = entered.stream.admitted - entered.submitted
            self.metrics.queue_time.observe(self._waited)
        step = self._scheduler.plan(self._reading.budget())
        if step.copy is not None and not self._copy(step.copy):
            return
        if step.prefill is not None:
            asked = self._chats[step.prefill.key].asked
            if (read := self._reading.read(step.prefill, asked, beside=bool(step.decode))) is not None:
                self._read_in(read)
        # those that a watchdog has not ended meanwhile
        decoding = [chat for key in step.decode if (chat := self._chats.get(key)) is not None]
        if decoding and (draft := self._draft(decoding[0])):
            self._check(decoding[0], draft)
        elif decoding:
            self._decode(decoding)
        elif self._reading.wait():
            return
        self.metrics.loop_time.observe(time.monotonic() - began - (self._engine.seconds - in_engine))

    def _end_early(self) -> None:
        """Frees the slots of those that were cancelled or are late, before anything is done for them again."""
        now = time.monotonic()
        for chat in list(self._chats.values()):
            if chat.key == self._reading.key:
                continue  # its row is being written: it ends when its chunk is read
            if chat.stream.cancelled is not None:
                self._end(chat, chat.stream.cancelled)
            elif chat.asked.deadline is not None and now >= chat.asked.deadline:
                where = f"after {chat.generated} tokens" if chat.key in self._scheduler.running else "in the queue"
                self._end(chat, "error", RequestError(f"the deadline passed {where}", "DEADLINE_EXCEEDED"))

    def _copy(self, copy: Copy) -> bool:
        try:
            self._engine.copy(copy.source, copy.target, copy.start, copy.count)
        except EngineFailed as failed:
            self._fail([self._chats[copy.key]], f"the engine failed to copy a prefix: {failed}")
            return False
        self._scheduler.copied(copy)
        return True

    def _read_in(self, read: Read) -> None:
        """A chunk was read: of a prompt's last one comes the first token."""
        chunk, chat = read.chunk, self._chats.get(read.chunk.key)
        if chat is None:
            return  # the loop has died meanwhile
        if read.logits is None:
            self._fail([chat], f"the engine failed on the prompt: {read.failure}")
            return
        self._reading.was_read(read)
        top = chat.asked.prompt_logprobs
        if top is not None:
            following = chat.asked.prompt[chunk.start + 1 : chunk.start + chunk.count + 1]
            try:
                chat.prompt_logprobs += prompt_logprobs(read.logits[: len(following)], following, top)
            except RequestError as error:  # they are not finite
                self._end(chat, "error", error, spoiled=True)
                return
        if chunk.start + chunk.count == chat.prompt:
            reused = self._scheduler.running[chat.key].reused
            self.metrics.prompt_tokens += chat.prompt
            self.metrics.cached_prompt_tokens += reused
            chat.stream.read_in(reused, chat.prompt_logprobs)
            self._advance([chat], read.logits[-1:])

    def _decode(self, chats: list[Chat]) -> None:
        slots = [self._scheduler.running[chat.key].slot for chat in chats]
        tokens = np.array([chat.last for chat in chats], dtype=np.int64)
        positions = np.array([chat.position for chat in chats], dtype=np.int64)
        # neighbours in order where they can be: nothing has to be mapped for them
        order = np.argsort(slots)
        try:
            logits = self._engine.decode([slots[i] for i in order], tokens[order], positions[order])
        except EngineFailed as failed:
            self._fail(chats, f"the engine failed while decoding: {failed}")
            return
        self._reading.decoded(self._engine.last_seconds)
        self.metrics.decode_time.observe(self._engine.last_seconds)
        for chat, token in zip(chats, tokens.tolist(), strict=True):
            self._scheduler.decoded(chat.key, token)
        self._judge(self._advance([chats[i] for i in order], logits))

    def _draft(self, chat: Chat) -> list[int]:
        """What `chat` may go on with, where a step of one more token than these is worth it."""
        # one chat holds a slot: nothing is read or decoded beside it
        if not self._most_drafted or len(self._scheduler.running) > 1:
            return []
        if chat.drafter is None:
            chat.drafter = Drafter(chat.asked.prompt)
        chat.drafter.follow(self._scheduler.rows[self._scheduler.running[chat.key].slot].tokens, chat.last)
        # each step gives one token that was not guessed
        most = min(self._most_drafted, chat.room(self._session.max_context) - 1)
        return draft_of(chat.drafter, most, chat.asked.stop_ids)

    def _check(self, chat: Chat, draft: list[int]) -> None:
        """One step for `chat` alone: the sampler picks behind each token of `draft` as it would without, and as long as
        it picks what was guessed the next logits are right. What was not picked is never read in the cache."""
        tokens = [chat.last, *draft]
        slot = self._scheduler.running[chat.key].slot
        try:
            logits = self._engine.check(slot, np.array(tokens, dtype=np.int64), chat.position)
        except EngineFailed as failed:
            self._fail([chat], f"the engine failed while checking a draft: {failed}")
            return
        self.metrics.decode_time.observe(self._engine.last_seconds)
        self.metrics.drafted_tokens += len(draft)
        finite = False
        with chat.stream.changed:  # its receiver is woken once
            for row, token in enumerate(tokens):
                self._scheduler.decoded(chat.key, token)
                generated = chat.generated
                finite |= self._advance([chat], logits[row : row + 1])
                if row == len(draft) or chat.generated == generated or chat.last != draft[row]:
                    break
                self.metrics.accepted_tokens += 1
                if chat.key not in self._chats or chat.stream.cancelled is not None:
                    break
        self._judge(finite)

    def _judge(self, finite: bool) -> None:
        """A decode is over, in which some logits were `finite`, or none."""
        if finite:
            self._worthless = 0
        else:
            self._worthless += 1
            if self._worthless >= _FAILURES:
                self._die(f"{self._worthless} of its decodes in a row gave no logits that are finite")

    def _advance(self, chats: list[Chat], logits: npt.NDArray[np.float32]) -> bool:
        """Picks, delivers and ends. `logits` [len(chats), vocab]; False when none of them were finite."""
        picked, logprobs = pick(logits, [chat.sampler for chat in chats])
        now = time.monotonic()
        for chat, token, logprob in zip(chats, picked, logprobs, strict=True):
            if token == NOT_FINITE:
                where = f"position {chat.position + 1}"
                self._spoil(chat, f"the engine gave logits that are not finite at {where}; the engine is damaged")
            elif token == NOTHING_ALLOWED:
                message = "constraint, bad words and biases together allow no token here; ask for less"
                self._end(chat, "error", RequestError(message, "INVALID_ARGUMENT"))
            elif token == CONSTRAINT_FAILED:
                cause = chat.sampler.failure
                message = f"the constraint of this request failed: {type(cause).__name__}: {cause}"
                self._end(chat, "error", RequestError(message, "INTERNAL"))
            elif token in chat.asked.stop_ids:
                self._end(chat, "stop")
            else:
                self._deliver(chat, token, logprob, now)
        return any(token != NOT_FINITE for token in picked)

    def _deliver(self, chat: Chat, token: int, logprob: TokenLogprobs | None, now: float) -> None:
        if chat.generated:
            self.metrics.inter_token_latency.observe(now - chat.told)
        else:
            chat.stream.first_token = now
            self.metrics.time_to_first_token.observe(now - chat.submitted)
        chat.last, chat.told = token, now
        chat.generated += 1
        self.metrics.output_tokens += 1
        if chat.room(self._session.max_context) > 0:
            chat.stream.put(token, logprob)
        elif self._release(chat, "length"):
            chat.stream.put(token, logprob, "length")

    def _fail(self, chats: list[Chat], message: str) -> None:
        for chat in chats:
            self._spoil(chat, message)
        self.metrics.engine_failures = self._engine.all_failures
        if self._engine.failures >= _FAILURES:
            self._die(f"{self._engine.failures} of its calls in a row failed, the last one: {message}")

    def _spoil(self, chat: Chat, message: str) -> None:
        self._end(chat, "error", RequestError(message, "INTERNAL"), spoiled=True)

    def _end(self, chat: Chat, finish: Finish, error: RequestError | None = None, *, spoiled: bool = False) -> None:
        if self._release(chat, finish, spoiled=spoiled):
            chat.stream.end(finish, error)

    def _release(self, chat: Chat, finish: Finish, *, spoiled: bool = False) -> bool:
        """Frees what `chat` holds, before its receiver hears of it. False: the watchdog has told it already."""
        with self._changed:
            if self._chats.pop(chat.key, None) is None:
                return False
            self._scheduler.remove(chat.key, spoiled=spoiled)
            self.metrics.endings[finish] += 1
            self._gauge()
        return True

    def _gauge(self) -> None:
        now, scheduler = self.metrics, self._scheduler
        now.queue_depth = len(scheduler.waiting)
        now.active_slots = len(scheduler.running)
        now.free_slots = scheduler.slots - now.active_slots
        now.kv_tokens = sum(scheduler.rows[chat.slot].length for chat in scheduler.running.values())
        now.kv_cached_tokens = sum(row.length for row in scheduler.rows) - now.kv_tokens
