"""`bench`: an artifact measured in this process and through the doors of a server, in rounds that take turns.

Every round measures every thing at every door, so that a slower minute of the machine falls on all of them;
ratios are made within a round. Memory comes last, when only the one is open whose memory it is.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes_deploy.benchmarking import speed
from hermes_deploy.benchmarking.doors import Answers, DoorName, InProcess, Served, session_opener
from hermes_deploy.benchmarking.environment import artifact_facts, machine_facts
from hermes_deploy.benchmarking.listening import NotMeasured
from hermes_deploy.benchmarking.memory import descendants, memory_of
from hermes_deploy.benchmarking.options import Options, Plan, Sizes, make_plan
from hermes_deploy.benchmarking.prompts import Prompts
from hermes_deploy.benchmarking.report import Collected, Report, What
from hermes_deploy.benchmarking.speed import Subject
from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.client import Client
from hermes_deploy.protocol.tensors import ENGINE
from hermes_deploy.repository.engine_config import EngineConfig, read_engine_config
from hermes_deploy.runtime.session import Session
from hermes_deploy.serving import Server, preflight

MANY_AGAINST_ONE = "all streams against one"
DOOR_AGAINST_LOOP = "door against in process"
SECOND_AGAINST_COLD = "second turn against cold"
FULL = "PSS, all slots full"


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps are over; `what` is the next one ("" at the end)."""

    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Opened:
    """An artifact whose bytes were verified, and what runs on it. `open_session`: (slots, max_context) -> a session.

    `target`: the one that `serve` would choose on this machine.
    """

    artifact: Path
    target: str
    config: EngineConfig
    max_slots: int
    max_context: int
    tokenizer: ChatTokenizer
    prompts: Prompts
    open_session: Callable[[int, int], Session]

    def facts(self) -> dict[str, Any]:
        return artifact_facts(self.artifact, self.target)

    def in_process(self, *, speculation: bool = False) -> InProcess:
        session = self.open_session(self.max_slots, self.max_context)
        return InProcess(session, self.config.stop_ids, speculation=speculation)


def open_artifact(artifact: Path) -> Opened:
    """Raises ArtifactError where it is not as built, ServeError where this machine cannot serve it."""
    checked = preflight.check(artifact)
    folder = checked.artifact / ENGINE / "1"
    config = read_engine_config(folder)
    tokenizer = ChatTokenizer.from_folder(folder)
    return Opened(
        checked.artifact,
        checked.target,
        config,
        checked.max_slots,
        checked.max_context,
        tokenizer,
        Prompts(tokenizer),
        session_opener(folder, config, checked.target),
    )


def bench(artifact: Path, options: Options, tell: Callable[[Progress], None] = lambda _: None) -> Report:
    """Everything of `options` that the artifact allows. Raises UsageError where that is nothing, and what opening
    and serving the artifact raise."""
    opened = open_artifact(artifact)
    plan = make_plan(options, opened.max_slots, opened.max_context, opened.prompts.turn_tokens)
    facts = {**machine_facts(), **opened.facts(), "options": _said(options)}
    found = Collected(left_out=dict(plan.left_out))
    run = _Run(opened, options, plan, found, tell)
    with ExitStack() as stack:
        run.rounds(stack)
    if plan.full and "in-process" in options.doors:
        run.step(f"{FULL}, in process")
        found.attempt(f"{FULL}, in process", run.own_memory)
    _add_ratios(found, options, plan)
    run.step("")
    return found.report(facts)


class _Run:
    def __init__(
        self, opened: Opened, options: Options, plan: Plan, found: Collected, tell: Callable[[Progress], None]
    ) -> None:
        self._opened = opened
        self._options = options
        self._plan = plan
        self._found = found
        self._tell = tell
        self._done = -1
        things = int(plan.prefill) + len(plan.decode) + int(plan.turns)
        served = len(self._served) > 0
        memory = int(plan.full and served) + int(plan.full and "in-process" in options.doors)
        self._total = options.rounds * len(options.doors) * things + int(served) + memory

    @property
    def _served(self) -> list[DoorName]:
        return [door for door in self._options.doors if door != "in-process"]

    def step(self, what: str) -> None:
        self._done += 1
        self._tell(Progress(self._done, self._total, what))

    def rounds(self, stack: ExitStack) -> None:
        with ExitStack() as closing_first:
            doors: dict[DoorName, Answers] = {}
            if self._served:
                self.step("starting the server")
                # children of this process that are not the server's are none: the server is all of them
                # a decode is timed, not how much a text repeats itself; in process the same
                server = Server(self._opened.artifact, grpc_port=0, http_port=0, metrics_port=0, speculation=False)
                stack.enter_context(server)
                self._found.attempt("PSS, server ready", lambda: self._keep_memory("PSS, ready", "server"))
                client = stack.enter_context(Client(server.endpoints.grpc))
                if "chat" in self._served:
                    doors["chat"] = Served(client, "chat")
                if "ensemble" in self._served:
                    doors["ensemble"] = Served(client, "ensemble")
            else:
                self._found.leave_out("PSS of a server", "no door of a server was asked for (--doors)")
            if "in-process" in self._options.doors:
                loop = self._opened.in_process()
                closing_first.callback(loop.close)
                doors["in-process"] = loop
            subjects = [self._subject(doors[name]) for name in self._options.doors]
            for number in range(self._options.rounds):
                self._round(number, subjects)
        if self._plan.full and self._served:
            self.step(f"{FULL}, server")
            self._found.attempt(f"{FULL}, server", lambda: self._server_memory(subjects))

    def own_memory(self) -> None:
        gc.collect()  # the cache of the session before this one goes with the last that knows of it
        with _closing(self._opened.in_process()) as door:
            speed.fill(self._subject(door), self._opened.max_slots, self._opened.max_context)
            self._keep_memory(FULL, "in-process")

    def _round(self, number: int, subjects: list[Subject]) -> None:
        # every other round begins at the other end: no door is always the one after another
        turns = subjects[:: -1 if number % 2 else 1]
        if self._plan.prefill:
            for subject in turns:
                self._measure(number, "prefill", subject, lambda s: speed.measure_prefill(s, self._found))
        for one in self._plan.decode:
            for subject in turns:
                what = f"decode, {one.context:,} tokens, {one.streams} streams"
                self._measure(number, what, subject, lambda s, one=one: speed.measure_decode(s, one, self._found))  # type: ignore[misc]
        if self._plan.turns:
            for subject in turns:
                self._measure(number, "second turn", subject, lambda s: speed.measure_turns(s, self._found))

    def _measure(self, number: int, what: str, subject: Subject, measure: Callable[[Subject], None]) -> None:
        self.step(f"round {number + 1} of {self._options.rounds}: {what}, {subject.door.name}")
        self._found.attempt(f"{what}, {subject.door.name}", lambda: measure(subject))

    def _server_memory(self, subjects: list[Subject]) -> None:
        served = next(subject for subject in subjects if subject.door.name != "in-process")
        speed.fill(served, self._opened.max_slots, self._opened.max_context)
        self._keep_memory(FULL, "server")

    def _keep_memory(self, measure: str, whose: str) -> None:
        memory = memory_of([os.getpid()] if whose == "in-process" else descendants(os.getpid()))
        if whose == "server" and not memory.processes:
            raise NotMeasured("no process of the server was found")
        for name, size in (
            (measure, memory.total),
            (f"{measure}: of it the KV cache", memory.cache_used),
            (f"{measure}: by the kernel alone", memory.pss),
        ):
            self._found.keep(What(name, "MB", whose), size / 1e6)

    def _subject(self, door: Answers) -> Subject:
        return Subject(door, self._opened.prompts, self._opened.tokenizer, self._options.used_sizes)


def _add_ratios(found: Collected, options: Options, plan: Plan) -> None:
    def decode(door: str, streams: int, context: int) -> What:
        return What(speed.DECODE, "tokens/s", door, streams, context)

    for door in options.doors:
        for one in plan.decode:
            if one.streams > 1 and 1 in options.streams:
                mine, single = decode(door, one.streams, one.context), decode(door, 1, one.context)
                found.ratio(MANY_AGAINST_ONE, mine, single, where=door, streams=one.streams)
    for door in options.doors:
        for one in plan.decode:
            if door != "in-process" and "in-process" in options.doors:
                mine, loop = decode(door, one.streams, one.context), decode("in-process", one.streams, one.context)
                found.ratio(DOOR_AGAINST_LOOP, mine, loop, where=door, streams=one.streams)
    history = options.used_sizes.history
    for door in options.doors if plan.turns else ():
        second, cold = (What(name, "ms", door, 1, history) for name in (speed.SECOND, speed.COLD))
        found.ratio(SECOND_AGAINST_COLD, second, cold, where=door, streams=1)
    if 1 not in options.streams:
        found.leave_out(MANY_AGAINST_ONE, "one stream was not asked for (--streams)")
    if "in-process" not in options.doors:
        found.leave_out(DOOR_AGAINST_LOOP, "in-process was not asked for (--doors)")


def _said(options: Options) -> dict[str, Any]:
    sizes: Sizes = options.used_sizes
    return {
        "streams": list(options.streams),
        "rounds": options.rounds,
        "doors": list(options.doors),
        "quick": options.quick,
        "tokens": {
            "prefill": sizes.prefill,
            "contexts": list(sizes.contexts),
            "decoded": sizes.decoded,
            "history": sizes.history,
            "answer": sizes.answer,
        },
    }


@contextmanager
def _closing(door: InProcess) -> Iterator[InProcess]:
    try:
        yield door
    finally:
        door.close()
