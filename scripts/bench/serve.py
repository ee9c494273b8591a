"""Puts a server's measures against what they must reach; prints a table, writes JSON.

    .venv/bin/hermes-deploy build smollm2 --output build/smollm2
    .venv/bin/python scripts/bench/serve.py [--rounds 3] [--only NAME,…] [--json docs/benchmarks/serve.json]

doors: tokens per second through each door against the token loop in this process, at 1 and at 8 streams.
crowd: 200 callers on the artifact's slots for two minutes, with a minute of as many callers as slots before and after.
aiperf: NVIDIA's load generator over HTTP, from an environment of its own in build/aiperf (made with the first call).
For idle cores: nothing else should run. The callers run on the same machine, which is part of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from hermes_deploy.benchmarking import Limit, Options, Report, Sizes, What, bench, independence, open_artifact
from hermes_deploy.benchmarking.crowd import Answers, Crowd, crowd
from hermes_deploy.benchmarking.environment import machine_facts
from hermes_deploy.benchmarking.listening import percentile
from hermes_deploy.benchmarking.memory import descendants, memory_of
from hermes_deploy.benchmarking.parts import add_only, chosen, finish, run_parts, say, tell
from hermes_deploy.benchmarking.report import Collected
from hermes_deploy.benchmarking.run import DOOR_AGAINST_LOOP, Opened
from hermes_deploy.client import Client, Door
from hermes_deploy.serving import Server

AIPERF = "aiperf==0.13.0"
CLIENTS, SECONDS = 200, 120.0
ANSWER, QUESTIONS = 64, 24
SETTLED = 30.0
"""Seconds after which memory must not grow any more."""
CROWD_AGAINST_SLOTS = "tokens of 200 callers against as many callers as slots"
GROWTH = "memory of the server in the last 30 s against 30 s after the start"
FAULTS = "answers with a lost, doubled or reordered token, or a wrong text"
ERRORS = "errors that are not the promised RESOURCE_EXHAUSTED"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, default=Path("build/smollm2"), help="8 slots")
    parser.add_argument("--rounds", type=int, default=3, help="of the part doors")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the part crowd")
    add_only(parser, PARTS)
    options = parser.parse_args()
    names = chosen(parser, options.only, PARTS)
    facts = {**machine_facts(), **open_artifact(options.artifact).facts(), "seconds": options.seconds}
    parts = {name: partial(part, options) for name, part in PARTS.items()}
    report, failed = run_parts(names, parts, Report(facts, (), ()), limit_of)
    return 0 if finish(report, options.json) and not failed else 1


def limit_of(what: What) -> Limit | None:
    """What the server must reach, None for a row that is only told."""
    if what.measure == DOOR_AGAINST_LOOP:
        return Limit(least=0.93 if what.where == "chat" else 0.85)
    return {
        CROWD_AGAINST_SLOTS: Limit(least=0.9),
        GROWTH: Limit(most=1.02),
        FAULTS: Limit(most=0),
        ERRORS: Limit(most=0),
    }.get(what.measure)


def doors(options: argparse.Namespace) -> Report:
    sizes = Sizes(contexts=(128,), full=False)
    report = bench(options.artifact, Options(streams=(1, 8), rounds=options.rounds, sizes=sizes), tell)
    told = ("decode", "between pieces", "first token", DOOR_AGAINST_LOOP)
    return Report({}, tuple(row for row in report.rows if row.what.measure.startswith(told)), ())


def crowds(options: argparse.Namespace) -> Report:
    """On each door a server of its own: slots callers, then 200, then slots again."""
    opened, found = open_artifact(options.artifact), Collected()
    prompts = opened.prompts.questions(QUESTIONS)
    with closing(opened.open_session(1, opened.max_context)) as session:
        lone = [independence.lone_answer(session, prompt, ANSWER).tokens for prompt in prompts]
    expected = {place: _until_stop(tokens, opened.config.stop_ids) for place, tokens in enumerate(lone)}
    for door in ("chat", "ensemble"):
        with _served(opened) as server, Client(server.endpoints.grpc) as client:
            memory: list[tuple[float, float]] = []

            def run(clients: int, seconds: float, tick: Callable[[float], None], to: Any = (client, door)) -> Crowd:
                say(f"  {to[1]}: {clients} callers for {seconds:g} s")
                answers = Answers(*to, opened.tokenizer, prompts, ANSWER, expected)
                return crowd(answers, clients, len(prompts), seconds, tick)

            few = [run(opened.max_slots, options.seconds / 2, _nothing)]
            many = run(CLIENTS, options.seconds, lambda since, to=memory: to.append((since, _memory())))
            few.append(run(opened.max_slots, options.seconds / 2, _nothing))
        _tell_crowd(found, door, few, many, memory)
    return found.report({})


def _tell_crowd(found: Collected, door: Door, few: list[Crowd], many: Crowd, memory: list[tuple[float, float]]) -> None:
    for each in (*few, many):
        found.keep(What("tokens of all callers", "tokens/s", door, each.clients), each.tokens_per_second)
        found.keep(What("first token p50, queue included", "s", door, each.clients), percentile(each.first_token_s, 50))
        found.keep(What("first token p99, queue included", "s", door, each.clients), percentile(each.first_token_s, 99))
        found.keep(What("answers", "answers", door, each.clients), each.answers)
        found.keep(What("answers that differ from the lone one", "answers", door, each.clients), each.faults.different)
        for error, count in each.faults.errors.items():
            say(f"  {door}, {each.clients} callers: {count} x {error}")
    every = (*few, many)
    found.keep(What("refused for want of room", "requests", door, many.clients), many.refused)
    found.keep(What(FAULTS, "answers", door), sum(c.faults.uncounted + c.faults.misspelled for c in every))
    found.keep(What(ERRORS, "requests", door), sum(sum(c.faults.errors.values()) for c in every))
    mean = sum(c.tokens_per_second for c in few) / len(few)
    found.keep(What(CROWD_AGAINST_SLOTS, "ratio", door), many.tokens_per_second / mean)
    early = [size for since, size in memory if SETTLED <= since < 2 * SETTLED]
    late = [size for since, size in memory if since >= many.seconds - SETTLED]
    if early and many.seconds >= 3 * SETTLED:
        before, after = percentile(early, 50), percentile(late, 50)
        found.keep(What("memory of the server, 30 to 60 s after the start", "MB", door, many.clients), before)
        found.keep(What(GROWTH, "ratio", door), after / before)
    else:
        found.leave_out(f"{GROWTH}, {door}", f"it takes --seconds {3 * SETTLED:g} or more")


def aiperf(options: argparse.Namespace) -> Report:
    """aiperf's own figures; it fails the run when a request failed."""
    found = Collected()
    opened = open_artifact(options.artifact)
    program = _aiperf()
    with _served(opened) as server, tempfile.TemporaryDirectory() as work:
        for model in ("hermes_engine", "hermes"):
            folder = Path(work) / model
            command = [
                str(program),
                *("profile", "--model", model, "--url", server.endpoints.http, "--streaming"),
                *("--endpoint-type", "template", "--custom-endpoint", f"/v2/models/{model}/generate_stream"),
                *("--extra-inputs", json.dumps({"payload_template": TEMPLATE, "response_field": "text"})),
                *("--tokenizer", str(opened.artifact / "hermes_engine" / "1")),
                *("--concurrency", "8", "--request-count", "64", "--synthetic-input-tokens-mean", "100"),
                *("--ui-type", "none", "--output-artifact-dir", str(folder)),
            ]
            say("  " + " ".join(command))
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            files = list(folder.rglob("profile_export_aiperf.json"))
            if done.returncode or not files:
                sys.exit(f"aiperf ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
            told = json.loads(files[0].read_text(encoding="utf-8"))
            _tell_aiperf(found, model, told)
    return found.report({})


TEMPLATE = (
    '{"messages": {{ [{"role": "user", "content": text}] | tojson | tojson }}, '
    '"max_tokens": 64, "temperature": 0.0, "ignore_eos": true}'
)
"""Triton takes the messages as a text that is JSON."""


AIPERF_TELLS = (
    "request_count",
    "request_error_rate",
    "request_throughput",
    "output_token_throughput",
    "time_to_first_token",
    "inter_token_latency",
)


def _tell_aiperf(found: Collected, model: str, told: dict[str, Any]) -> None:
    for name in AIPERF_TELLS:
        for which in ("avg", "p50", "p99"):
            if (value := told.get(name, {}).get(which)) is not None:
                found.keep(What(f"aiperf {name} {which}", told[name]["unit"], model, 8), value)


def _aiperf() -> Path:
    folder = Path("build/aiperf")
    program = folder / "bin" / "aiperf"
    if not program.exists():
        say(f"  installing {AIPERF} into {folder}")
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", AIPERF], check=True)
    return program.absolute()


def _served(opened: Opened) -> Server:
    # as the loop in process that it is put beside: timed are steps, not how much a text repeats itself
    return Server(opened.artifact, grpc_port=0, http_port=0, metrics_port=0, speculation=False)


def _nothing(_: float) -> None:
    pass


def _memory() -> float:
    """MB of the server: it is all that this process has started."""
    return memory_of(descendants(os.getpid())).total / 1e6


def _until_stop(tokens: tuple[int, ...], stop_ids: tuple[int, ...]) -> tuple[int, ...]:
    end = next((at for at, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return tokens[:end]


PARTS: dict[str, Callable[[argparse.Namespace], Report]] = {"doors": doors, "crowd": crowds, "aiperf": aiperf}


if __name__ == "__main__":
    sys.exit(main())
