"""Ours beside what people would pick instead; prints a table and a roofline, writes JSON and a picture.

    .venv/bin/hermes-deploy build smollm2 --output build/smollm2
    .venv/bin/python scripts/bench/peers.py [--rounds 5] [--only hermes,llama-q4_0] [--quick]
        [--json docs/benchmarks/peers.json] [--plot docs/benchmarks/peers.svg]

The first call makes an environment and a model for each under build/peers (minutes; llama.cpp is built from its
source, which takes gcc and cmake). All have the same weights (the demo's), two threads, the same prompts as token ids;
answers are greedy and end sequences are not heeded. Each is a process of its own; they take turns measure by measure.
For idle cores: nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "peer_workers"))

from systems import OURS, SYSTEMS, THREADS, System, ToolUnavailableError, prepare

from hermes_deploy.benchmarking import Report, What, open_artifact
from hermes_deploy.benchmarking.bars import bars
from hermes_deploy.benchmarking.contest import (
    DECODE,
    QUICK,
    WARMING,
    Contestant,
    Lengths,
    measure_load,
    measure_peak,
    measure_quality,
    measure_round,
)
from hermes_deploy.benchmarking.environment import machine_facts
from hermes_deploy.benchmarking.listening import NotMeasured
from hermes_deploy.benchmarking.parts import add_only, chosen, say
from hermes_deploy.benchmarking.prompts import Prompts
from hermes_deploy.benchmarking.report import Collected
from hermes_deploy.benchmarking.rivals import Quality, add_ratios, counts, document, table
from hermes_deploy.benchmarking.roofline import bound, memory_bandwidth
from hermes_deploy.benchmarking.worker import Worker
from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.verification import Measures, heldout_texts, reference_of

POSITIONS = 512
"""Held-out positions that the KL is a mean of."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, default=Path("build/smollm2"), help="2,048 tokens, 8 slots")
    parser.add_argument("--rounds", type=int, default=5, help="0: the KL alone")
    parser.add_argument("--quick", action="store_true", help="fewer tokens, and no KL")
    parser.add_argument("--plot", type=Path, help="an SVG file")
    add_only(parser, SYSTEMS)
    options = parser.parse_args()
    names = chosen(parser, options.only, SYSTEMS)
    if options.rounds < 0 or (options.quick and not options.rounds):
        parser.error(f"--rounds is {options.rounds}; it takes 1 or more, or without --quick 0 for the KL alone")
    opened, found = open_artifact(options.artifact), Collected()
    lengths = QUICK if options.quick else Lengths()
    systems = _prepared(names, options.artifact, found)
    bandwidth = memory_bandwidth(THREADS)
    say(f"memory: {bandwidth / 1e9:.1f} GB/s with {THREADS} threads")
    versions: dict[str, str] = {}
    measures = {} if options.quick else qualities_of(systems, opened.tokenizer, found, versions)
    if options.rounds:
        race(systems, opened.prompts, lengths, options.rounds, found, versions)
    if OURS in systems:
        add_ratios(found, OURS, [name for name in systems if name != OURS])
    qualities = {
        name: Quality(system.precision, measures[name].kl if name in measures else None)
        for name, system in systems.items()
    }
    judged = {name: counts(qualities[OURS], qualities[name]) for name in systems if name != OURS and OURS in systems}
    report = found.report(
        {
            **machine_facts(),
            **opened.facts(),
            "rounds": options.rounds,
            "threads": THREADS,
            "lengths": asdict(lengths),
            "bandwidth_bytes_per_second": bandwidth,
        }
    )
    told = {
        name: {
            "version": versions.get(name),
            "note": system.note,
            "precision": asdict(system.precision),
            "reads": asdict(system.reads),
            "measures": asdict(measures[name]) if name in measures else None,
            "counts": judged[name][0] if name in judged else None,
            "why": judged[name][1] if name in judged else None,
        }
        for name, system in systems.items()
    }
    print(said(report, systems, versions, measures, judged, bandwidth))
    if options.json:
        text = json.dumps(document(report, told), ensure_ascii=False, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")
    if options.plot:
        options.plot.write_text(bars(report, list(systems)), encoding="utf-8")
    return 1 if report.left_out else 0


def _prepared(names: list[str], artifact: Path, found: Collected) -> dict[str, System]:
    systems = {}
    for name in names:
        say(f"{name}: environment and model")
        try:
            systems[name] = prepare(name, artifact)
        except ToolUnavailableError as error:
            found.leave_out(name, f"cannot be had here: {error}")
    return systems


def qualities_of(
    systems: dict[str, System], tokenizer: ChatTokenizer, found: Collected, versions: dict[str, str]
) -> dict[str, Measures]:
    """KL to the reference and the like, of each that gives logits; in processes that are not timed.

    Notes `versions`.
    """
    say("the reference: the float32 decoder over the same weights")
    checkpoint = open_checkpoint("smollm2")
    texts = heldout_texts(tokenizer, POSITIONS)
    reference = reference_of(checkpoint.config, checkpoint.tensors, texts.sequences, "float32")
    measures = {}
    for name, system in systems.items():
        say(f"logits: {name}")
        with tempfile.TemporaryDirectory() as folder, closing(_worker(system)) as worker:
            try:
                versions[name] = worker.load().facts["version"]
                measures[name] = measure_quality(worker, reference, Path(folder))
            except NotMeasured as why:
                found.leave_out(f"KL, {name}", str(why))
    return measures


def race(
    systems: dict[str, System],
    prompts: Prompts,
    lengths: Lengths,
    rounds: int,
    found: Collected,
    versions: dict[str, str],
) -> None:
    """Everything that is timed, and memory. Notes `versions`."""
    for number in range(rounds):
        for name, system in systems.items():
            say(f"load {number + 1}: {name}")
            found.attempt(f"load, {name}", lambda s=system: measure_load(lambda: _worker(s), found))  # type: ignore[misc]
    with ExitStack() as stack:
        contestants = []
        for name, system in systems.items():
            worker = stack.enter_context(closing(_worker(system)))
            try:
                loaded = worker.load()
            except NotMeasured as why:
                found.leave_out(name, str(why))
                continue
            versions[name] = loaded.facts["version"]
            contestants.append(Contestant(worker, loaded.keeps))
        say("warming up: kernels are chosen and buffers grow with the first of a length")
        measure_round(0, contestants, prompts, WARMING, Collected(), lambda what: say(f"  {what}"))
        for number in range(rounds):
            measure_round(number, contestants, prompts, lengths, found, lambda what: say(f"  {what}"))
            say(f"round {number + 1} of {rounds} is over")
        for contestant in contestants:
            say(f"memory: {contestant.name}")
            found.attempt(f"memory, {contestant.name}", lambda c=contestant: measure_peak(c, prompts, lengths, found))  # type: ignore[misc]


def _worker(system: System) -> Worker:
    return Worker(system.name, system.command, dict(system.environment))


def said(
    report: Report,
    systems: dict[str, System],
    versions: dict[str, str],
    measures: dict[str, Measures],
    judged: dict[str, tuple[bool, str]],
    bandwidth: float,
) -> str:
    """Markdown: the measures, what each system is and whether its ratios count, the roofline, what was left out."""
    lines = [f"{report.facts['machine']}", "", table(report, list(systems), {n: c for n, (c, _) in judged.items()})]
    lines += [
        "",
        "| system | version | precision | KL, nats | top-1 | ratios count | |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, system in systems.items():
        kl, top1 = (f"{measures[name].kl:.3g}", f"{measures[name].top1:.3f}") if name in measures else ("–", "–")
        count = "" if name not in judged else f"{'yes' if judged[name][0] else '**no**'}: {judged[name][1]}"
        version = versions.get(name, "–")
        lines.append(f"| {name} | {version} | {system.precision} | {kl} | {top1} | {count} | {system.note} |")
    lines += ["", f"Roofline: {bandwidth / 1e9:.1f} GB/s read with {THREADS} threads."]
    lines += ["", "| decode | system | MB a step | at most, tokens/s | found | share |", "|---|---|---|---|---|---|"]
    for row in report.rows:
        if row.what.measure == DECODE and row.what.streams is not None and row.what.context is not None:
            where = (row.what.streams, row.what.context)
            reads = systems[row.what.where].reads
            most = bound(reads, bandwidth, *where)
            lines.append(
                f"| {_nameless(row.what)} | {row.what.where} | {reads.a_step(*where) / 1e6:,.0f} | {most:,.0f} "
                f"| {row.median:,.0f} | {row.median / most:.2f} |"
            )
    return "\n".join([*lines, "", *(f"- left out: {each.what}: {each.why}" for each in report.left_out)])


def _nameless(what: What) -> str:
    return f"{what.streams} stream{'' if what.streams == 1 else 's'} at {what.context:,}"


if __name__ == "__main__":
    sys.exit(main())
