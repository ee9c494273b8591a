"""Measures a build of the demo model and the first answer, stage by stage; prints a table and JSON.

    .venv/bin/python scripts/bench/build.py [--rounds 3] [--json docs/benchmarks/build.json]

Each build is a process of its own; its peak resident memory is what the kernel accounts to it and
its children. Medians over the rounds, with the least and the greatest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hermes_deploy.client import Client
from hermes_deploy.serving import Server

TENSORRT = ("sm80", "sm86", "sm89", "sm120")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            artifact = Path(folder) / f"cpu-{number}"
            cpu = build(artifact, ("cpu",))
            stages = cpu["stages"]
            keep(rows, "cpu build without the gate, s", sum(v for k, v in stages.items() if not gating(k)))
            keep(rows, "cpu build with the gate, s", cpu["wall"])
            keep(rows, "cpu build, peak RSS, MB", cpu["peak"])
            for stage, seconds in stages.items():
                keep(rows, f"  stage {stage}, s", seconds)
            every = build(Path(folder) / f"all-{number}", ("cpu", *TENSORRT))
            added = sum(v for k, v in every["stages"].items() if k.startswith("engine"))
            keep(rows, "four TensorRT targets in one int4 engine, s", added)
            keep(rows, "the same with graph and gate, s", every["wall"] - cpu["wall"])
            keep(rows, "build for all five, peak RSS, MB", every["peak"])
            for name, value in serve(artifact).items():
                keep(rows, name, value)
            began = time.perf_counter()
            quickstart = ["scripts/quickstart", "--artifact", str(artifact)]
            subprocess.run(quickstart, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            keep(rows, "quickstart, environment and artifact in place, s", time.perf_counter() - began)
            began = time.perf_counter()
            quickstart[-1] = str(Path(folder) / f"quickstart-{number}")
            subprocess.run(quickstart, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            keep(rows, "quickstart, environment in place, with the build, s", time.perf_counter() - began)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}; {options.rounds} rounds\n\n| measure | median | least | greatest |\n|---|---|---|---|")
    for name, values in rows.items():
        print(f"| {name.strip()} | {statistics.median(values):,.2f} | {min(values):,.2f} | {max(values):,.2f} |")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def gating(stage: str) -> bool:
    return stage.startswith("gate") or stage == "reference"


def keep(rows: dict[str, list[float]], name: str, value: float) -> None:
    rows.setdefault(name, []).append(round(value, 3))


def build(output: Path, targets: tuple[str, ...]) -> dict[str, Any]:
    """The build's own report, with `wall` seconds and `peak` MB of the largest process."""
    flags = [flag for target in targets for flag in ("--target", target)]
    verb = ["build", "smollm2", "--output", str(output), "--recipe", "int4-awq", "--json", "--quiet", *flags]
    verb += ["--no-cache", "--gate-positions", "1400"]  # all of it, as quickstart asks for it
    # a process between us and the build, so that the peak is of this build alone
    code = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'hermes_deploy.cli', *sys.argv[1:]], stdout=subprocess.PIPE)\n"
        "report = json.loads(done.stdout)\n"
        "report['peak'] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3\n"
        "print(json.dumps(report)); sys.exit(done.returncode)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *verb], stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return {**report, "wall": time.perf_counter() - began}


def serve(artifact: Path) -> dict[str, float]:
    began = time.perf_counter()
    with Server(artifact, grpc_port=0, http_port=0, metrics_port=0) as server:
        ready = time.perf_counter() - began
        times: dict[str, list[float]] = {"chat": [], "ensemble": []}
        with Client(server.endpoints.grpc) as client:
            for _ in range(9):
                for door, found in times.items():
                    time.sleep(0.2)  # the answer before is over, on the server too
                    question = "What is the capital of France?"
                    answer = client.ask(question, door=door, max_tokens=8, temperature=0.0)  # type: ignore[arg-type]
                    found.append(answer.timing.first_piece_s * 1000)
    firsts = {f"first token, {door} door, ms": statistics.median(found[1:]) for door, found in times.items()}
    cold = {f"first token of the first request, {door} door, ms": found[0] for door, found in times.items()}
    return {"server ready, s": ready, **firsts, **cold}


if __name__ == "__main__":
    main()
