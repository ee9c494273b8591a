"""Puts the token loop's measures against what they must reach; prints a table, writes JSON.

    .venv/bin/hermes-deploy build smollm2 --output build/smollm2
    .venv/bin/hermes-deploy build smollm2 --recipe int4-awq-kv8 --output build/kv8
    .venv/bin/hermes-deploy build smollm2 --max-context 8192 --max-slots 16 --output build/long
    .venv/bin/python scripts/bench/token_loop.py [--rounds 3] [--only NAME,…] [--json docs/benchmarks/token_loop.json]

Sides of a ratio take turns within one process tree; medians over the rounds with the least and the greatest.
A part whose artifact is not there is left out and said so. For idle cores: nothing else should run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from hermes_deploy.benchmarking import (
    Limit,
    Options,
    Report,
    Row,
    Sizes,
    What,
    bench,
    drafts,
    independence,
    long_prompt,
    loop_cost,
    open_artifact,
    step_time,
)
from hermes_deploy.benchmarking.environment import machine_facts
from hermes_deploy.benchmarking.listening import NotMeasured
from hermes_deploy.benchmarking.parts import add_only, chosen, finish, run_parts, say, tell
from hermes_deploy.benchmarking.report import Collected
from hermes_deploy.benchmarking.run import FULL, MANY_AGAINST_ONE, SECOND_AGAINST_COLD
from hermes_deploy.protocol.tensors import ENGINE
from hermes_deploy.serving.sessions import open_session

LONG_PROMPT = 4000
QUESTIONS, ANSWER = 24, 64
ANSWER_THAT_REPEATS = 160


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, default=Path("build/smollm2"), help="2,048 tokens, 8 slots")
    parser.add_argument("--kv8", type=Path, default=Path("build/kv8"), help="the same with an 8-bit cache")
    parser.add_argument("--long", type=Path, default=Path("build/long"), help="8,192 tokens, 8 slots or more")
    parser.add_argument("--rounds", type=int, default=3)
    add_only(parser, PARTS)
    options = parser.parse_args()
    names = chosen(parser, options.only, PARTS)
    report = Report({**machine_facts(), "rounds": options.rounds, "artifacts": {}}, (), ())
    parts = {name: partial(_needing, part, needs, options, report) for name, (part, needs) in PARTS.items()}
    report, failed = run_parts(names, parts, report, limit_of)
    return 0 if finish(report, options.json) and not failed else 1


def _needing(part: Part, needs: tuple[str, ...], options: argparse.Namespace, report: Report) -> Report:
    """The part, where the artifacts that it needs are there; `report` takes their facts."""
    for need in needs:
        folder: Path = getattr(options, need)
        if not folder.exists():
            raise NotMeasured(f"{folder} is not there; build it as the head of scripts/bench/token_loop.py says")
        report.facts["artifacts"][need] = open_artifact(folder).facts()["artifact"]
    return part(options)


def limit_of(what: What) -> Limit | None:
    """What the issue asks of a row, None where it only wants it told."""
    if what.measure == MANY_AGAINST_ONE and (what.where, what.streams) == ("in-process", 8):
        return Limit(least=2.5)
    if what.measure == FULL and what.where.startswith("server"):
        return Limit(most=650) if "8-bit" in what.where else Limit(most=1300)
    return {
        long_prompt.STRETCHED: Limit(most=3),
        SECOND_AGAINST_COLD: Limit(most=0.15),
        loop_cost.COST: Limit(most=0.4),
        step_time.SLOTS_RATIO: Limit(most=1.15),
        step_time.LENGTH_RATIO: Limit(most=1.1),
        independence.WIDEST: Limit(most=1e-2),
        drafts.GAIN: Limit(least=0.95 if what.where == drafts.FREE else 1.6),
    }.get(what.measure)


def doors(options: argparse.Namespace) -> Report:
    """8 streams against one, second turns, doors against in process; PSS at full slots."""
    return bench(options.artifact, Options(streams=(1, 8), rounds=options.rounds), tell)


def memory_kv8(options: argparse.Namespace) -> Report:
    """The same memory with an 8-bit cache; one short round to have a server."""
    sizes = Sizes(contexts=(128,), decoded=16)
    asked = Options(streams=(1,), rounds=1, doors=("chat",), sizes=sizes)
    report = bench(options.kv8, asked, tell)
    rows = [row for row in report.rows if row.what.measure.startswith("PSS")]
    named = tuple(Row(replace(row.what, where=f"{row.what.where}, 8-bit cache"), row.values) for row in rows)
    return replace(report, rows=named, left_out=())


def long_prompts(options: argparse.Namespace) -> Report:
    """A 4,000-token prompt beside 1, 4 and 7 running chats, and alone."""
    opened, found = open_artifact(options.long), Collected()
    with closing(opened.in_process()) as door:
        for number in range(options.rounds):
            say(f"  round {number + 1}: alone")
            long_prompt.measure_alone(door, opened.prompts, LONG_PROMPT, found)
            for running in (1, 4, 7):
                say(f"  round {number + 1}: beside {running}")
                long_prompt.measure_beside(door, opened.prompts, running, LONG_PROMPT, found)
    return found.report({})


def loop(options: argparse.Namespace) -> Report:
    """Scheduler, sampling and delivery at 8 streams over logits of the real model."""
    opened, found = open_artifact(options.artifact), Collected()
    with closing(opened.open_session(1, opened.max_context)) as session:
        rows = loop_cost.prepared_logits(session, opened.prompts.of(512, 0).ids)
    for _ in range(options.rounds):
        loop_cost.measure_cost(rows, 8, loop_cost.GREEDY, "greedy", found)
        loop_cost.measure_cost(rows, 8, loop_cost.DRAWN, "temperature 0.7, top_p 0.95", found)
    return found.report({})


def slots(options: argparse.Namespace) -> Report:
    """Two of eight slots against an engine of two."""
    opened, found = open_artifact(options.artifact), Collected()
    ids = opened.prompts.of(128, 0).ids
    with (
        closing(opened.open_session(8, opened.max_context)) as eight,
        closing(opened.open_session(2, opened.max_context)) as two,
    ):
        for active in ((0, 7), (2, 5), (6, 1)):
            step_time.compare_slots(eight, two, active, ids, found, options.rounds)
    return found.report({})


def length(options: argparse.Namespace) -> Report:
    """A step at position 128 with 8,192 tokens of cache against 2,048."""
    short, long, found = open_artifact(options.artifact), open_artifact(options.long), Collected()
    ids = short.prompts.of(128, 0).ids
    with (
        closing(short.open_session(8, short.max_context)) as few,
        closing(long.open_session(8, long.max_context)) as many,
    ):
        for streams in (1, 8):
            step_time.compare_lengths(many, few, streams, ids, found, options.rounds)
    return found.report({})


def operators(options: argparse.Namespace) -> Report:
    """Steps and prompts by our own operators against ONNX Runtime's."""
    opened, found = open_artifact(options.artifact), Collected()
    folder = opened.artifact / ENGINE / "1"
    with (
        closing(opened.open_session(8, opened.max_context)) as ours,
        closing(
            open_session(
                opened.config, opened.target, folder, slots=8, max_context=opened.max_context, own_kernels=False
            )
        ) as theirs,
    ):
        if why := getattr(ours, "without_kernels", "they are for the cpu target"):
            raise NotMeasured(f"our operators cannot be used: {why}")
        step_time.compare_operators(theirs, ours, opened.prompts.of(1024, 0).ids, found, options.rounds)
    return found.report({})


def independent(options: argparse.Namespace) -> Report:
    """24 greedy answers alone, 8 at a time, and with half and all of their prompt in the cache."""
    opened, found = open_artifact(options.artifact), Collected()
    prompts = opened.prompts.questions(QUESTIONS)
    with closing(opened.open_session(1, opened.max_context)) as session:
        lone = [independence.lone_answer(session, prompt, ANSWER) for prompt in prompts]
    ways = {
        independence.COMPANY: lambda door: independence.answers_in_company(door, prompts, ANSWER, 8),
        independence.HALF: lambda door: independence.answers_behind_prefix(door, prompts, ANSWER, 0.5),
        independence.AGAIN: lambda door: independence.answers_behind_prefix(door, prompts, ANSWER, 1),
    }
    for how, ask in ways.items():
        # a loop of its own: nothing is in its cache that the way does not say
        with closing(opened.in_process()) as door:
            independence.compare(lone, ask(door), how, found)
    return found.report({})


def speculation(options: argparse.Namespace) -> Report:
    """Answers that repeat their prompt, and some that cannot, with guessing and without it: how fast, and the same?"""
    opened, found = open_artifact(options.artifact), Collected()
    asked, greedy = drafts.questions(opened.prompts), {}
    for number in range(options.rounds):
        # opened anew, the other one first: of two equal loops the second one was the faster by 2 %
        order = (True, False) if number % 2 else (False, True)
        with ExitStack() as stack:
            loops = {guesses: stack.enter_context(closing(opened.in_process(speculation=guesses))) for guesses in order}
            for kind, prompts in asked.items():
                say(f"  round {number + 1}: {kind}")
                greedy[kind] = drafts.measure(loops[True], loops[False], kind, prompts, ANSWER_THAT_REPEATS, found)
            stop_ids = loops[True].stop_ids
    del greedy[drafts.FREE]
    with closing(opened.open_session(1, opened.max_context)) as session:
        lone = [
            drafts.ended(independence.lone_answer(session, prompt, ANSWER_THAT_REPEATS), stop_ids)
            for kind in greedy
            for prompt in asked[kind]
        ]
    independence.compare(lone, [answer for answers in greedy.values() for answer in answers], drafts.HOW, found)
    return found.report({})


Part = Callable[[argparse.Namespace], Report]
PARTS: dict[str, tuple[Part, tuple[str, ...]]] = {
    "doors": (doors, ("artifact",)),
    "kv8": (memory_kv8, ("kv8",)),
    "long-prompt": (long_prompts, ("long",)),
    "loop": (loop, ("artifact",)),
    "slots": (slots, ("artifact",)),
    "length": (length, ("artifact", "long")),
    "operators": (operators, ("artifact",)),
    "independence": (independent, ("artifact",)),
    "speculation": (speculation, ("artifact",)),
}
"""By the name that --only takes: the part, and the artifacts that it needs."""


if __name__ == "__main__":
    sys.exit(main())
