"""Builds the demo model, serves it on a real Triton, asks one question through both doors at once.

Run by scripts/quickstart, which makes the environment first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from hermes_deploy.cli.progress import Progress
from hermes_deploy.client import Client
from hermes_deploy.errors import ArtifactError, HermesDeployError
from hermes_deploy.pipeline import BuildRequest, build_artifact
from hermes_deploy.recipes import load_recipe
from hermes_deploy.repository.manifest import read_manifest, verify_files
from hermes_deploy.repository.version import version_differences
from hermes_deploy.serving import Server

DOORS = {"chat": "direct door (hermes_engine)", "ensemble": "ensemble (hermes)"}


@dataclass
class Answer:
    """What came through one door so far; times in seconds."""

    text: str = ""
    tokens: int = 0
    first: float | None = None
    last: float = 0.0
    finish_reason: str = ""
    error: BaseException | None = None
    began: float = field(default_factory=time.perf_counter)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--prompt", default="What is the capital of France?", help="the question (default: %(default)s)"
    )
    parser.add_argument("--max-tokens", type=int, default=200, help="longest answer, in tokens (default: %(default)s)")
    parser.add_argument(
        "--keep", action="store_true", help="leave the server running until Ctrl-C, and say how to call it"
    )
    parser.add_argument(
        "--artifact", type=Path, default=Path("build/smollm2"), help="where to build (default: %(default)s)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False)
    times: dict[str, float] = {"install": float(os.environ.get("HERMES_QUICKSTART_INSTALL_SECONDS", 0))}
    try:
        times |= obtain(options.artifact, console)
        began = time.perf_counter()
        with Server(options.artifact, grpc_port=0, http_port=0, metrics_port=0) as server:
            times["server ready"] = time.perf_counter() - began
            url = server.endpoints.grpc
            answers = ask_both(url, options.prompt, options.max_tokens, console)
            report(times, answers, console)
            failed = [a for a in answers.values() if a.error is not None]
            if options.keep and not failed:
                keep(url, server, console)
    except KeyboardInterrupt:
        return 130
    except HermesDeployError as error:
        console.print(f"error: {error}", markup=False)
        return error.exit_code
    return 1 if failed else 0


def obtain(artifact: Path, console: Console) -> dict[str, float]:
    """Builds the demo unless an intact one of the same recipe stands there; seconds by stage."""
    if artifact.exists():
        began = time.perf_counter()
        manifest = read_manifest(artifact)
        problems = verify_files(artifact, manifest)
        if problems or manifest.recipe != load_recipe("int4-awq").model_dump():
            why = problems[0] if problems else "it was built with another recipe"
            raise ArtifactError(
                f"{artifact} cannot be used again: {why}. Remove it and run this again: rm -r {artifact}"
            )
        another = version_differences(artifact)
        if another:
            console.print(
                f"{artifact} is of another version of hermes-deploy ({another[0]}); building it again", soft_wrap=True
            )
            return rebuild(artifact)
        console.print(f"using {artifact}, built {manifest.created}")
        return {"verify what was built": time.perf_counter() - began}
    return build(artifact)


def rebuild(artifact: Path) -> dict[str, float]:
    """In its place; the old one stays where it was when that fails."""
    old = artifact.with_name(f"{artifact.name}.old")
    if old.exists():
        raise ArtifactError(f"{old} is in the way. Remove it and run this again: rm -r {old}")
    artifact.rename(old)
    try:
        times = build(artifact)
    except BaseException:
        old.rename(artifact)
        raise
    shutil.rmtree(old)
    return times


def build(artifact: Path) -> dict[str, float]:
    """Seconds by stage."""
    # an eighth of what a build compares by default: enough to show, and quick
    asked = BuildRequest(model="smollm2", output=artifact, recipe="int4-awq", gate_positions=1400)
    with Progress() as progress:
        built = build_artifact(asked, progress.show)
    return {f"build: {stage}": seconds for stage, seconds in built.stages.items()}


def ask_both(url: str, prompt: str, max_tokens: int, console: Console) -> dict[str, Answer]:
    """Streams the answers of both doors at once, side by side."""
    console.print(f"\n[bold]>[/bold] {prompt}\n")
    answers = {door: Answer() for door in DOORS}
    with Client(url) as client:
        threads = [
            threading.Thread(target=stream, args=(client, door, prompt, max_tokens, answer))
            for door, answer in answers.items()
        ]
        for thread in threads:
            thread.start()
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                while any(thread.is_alive() for thread in threads):
                    live.update(side_by_side(answers), refresh=True)
                    time.sleep(0.05)
                live.update(side_by_side(answers), refresh=True)
        for thread in threads:
            thread.join()
    if not console.is_terminal:
        console.print(side_by_side(answers))
    return answers


def stream(client: Client, door: str, prompt: str, max_tokens: int, answer: Answer) -> None:
    answer.began = time.perf_counter()
    try:
        with client.stream(prompt, door=door, max_tokens=max_tokens, temperature=0.0) as pieces:
            for piece in pieces:
                now = time.perf_counter() - answer.began
                answer.first = now if answer.first is None else answer.first
                answer.last = now
                answer.text += piece.text
                answer.tokens = piece.usage.completion_tokens
                answer.finish_reason = piece.finish_reason or ""
    except HermesDeployError as error:
        answer.error = error


def side_by_side(answers: dict[str, Answer]) -> Table:
    table = Table.grid(expand=True, padding=(0, 1))
    for _ in answers:
        table.add_column(ratio=1)
    table.add_row(
        *(
            Panel(f"error: {answer.error}" if answer.error else answer.text, title=DOORS[door])
            for door, answer in answers.items()
        )
    )
    return table


def report(times: dict[str, float], answers: dict[str, Answer], console: Console) -> None:
    console.print("\n[bold]where the time went[/bold]")
    for what, seconds in times.items():
        console.print(f"  {what:<28} {seconds:8.2f} s")
    for door, answer in answers.items():
        if answer.error is None and answer.first is not None:
            rate = (answer.tokens - 1) / (answer.last - answer.first) if answer.last > answer.first else 0.0
            console.print(
                f"  {DOORS[door]:<28} {answer.first * 1000:8.1f} ms to the first token, then {rate:.0f} tokens/s "
                f"({answer.tokens} tokens, {answer.finish_reason}; both doors at once)",
                markup=False,
                soft_wrap=True,
            )


def keep(url: str, server: Server, console: Console) -> None:
    console.print(
        f"\nThe server keeps running; Ctrl-C stops it. Call it:\n"
        f"  .venv/bin/hermes-deploy ask 'Tell me a joke.' --url {url}\n"
        f"  .venv/bin/hermes-deploy ask 'Bonjour !' --url {url} --door ensemble\n",
        markup=False,
    )
    sys.stdout.flush()
    server.wait()


if __name__ == "__main__":
    sys.exit(main())
