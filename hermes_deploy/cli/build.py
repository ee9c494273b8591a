"""`hermes-deploy build`: a checkpoint in, a verified Triton model repository out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hermes_deploy.errors import BuildError

if TYPE_CHECKING:
    from hermes_deploy.pipeline import PlanReport


def build(
    model: Annotated[
        str,
        typer.Argument(
            help="smollm2 (the demo), a folder in Hugging Face layout, a .gguf file, or a hub id (org/name)."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the artifact; must not exist, or be empty.")],
    recipe: Annotated[
        str,
        typer.Option(
            help="By name: int4-awq, int4-awq-kv8, int4-rtn, int8-sq, fp8, w4a8, nvfp4, fp16, fp32; or the path of a "
            ".yaml file."
        ),
    ] = "int4-awq",
    target: Annotated[
        list[str] | None,
        typer.Option(help="Where it will run; repeat for several: cpu, cuda, sm80, sm86, sm89, sm90, sm120. [cpu]"),
    ] = None,
    max_context: Annotated[
        int | None,
        typer.Option(help="Longest chat, prompt and answer together, in tokens. Default: the recipe's."),
    ] = None,
    max_slots: Annotated[
        int | None,
        typer.Option(help="Chats that generate at once. Default: the recipe's."),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of a hub id."),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of a PEFT LoRA; it is merged before anything else.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Chats to calibrate with, one a line (JSONL), instead of the packaged ones.")
    ] = None,
    gate_positions: Annotated[
        int | None,
        typer.Option(help="Held-out positions that the accuracy gate compares; at least 512. Default: 8192."),
    ] = None,
    accept_degraded: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Publish even if the gate fails; the reason goes into the manifest."),
    ] = None,
    sign_with: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Sign the artifact with this private key (PEM, elliptic curve).")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say which stages would run and what they need; exit code 4: no room.")
    ] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Use no stage of an earlier build, and keep none of this one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress lines.")] = False,
) -> None:
    """Builds an artifact: graph, quantization, engines, accuracy gate, Triton repository.

    The build fails and publishes nothing when the result does not answer like the unquantized
    model (KL, top-1 agreement, perplexity and tensor error against the recipe's thresholds).

    Example: hermes-deploy build smollm2 --output demo --recipe int4-awq --target cpu --target sm89
    """
    from hermes_deploy.cli.progress import Progress
    from hermes_deploy.pipeline import BuildRequest, build_artifact, plan_artifact
    from hermes_deploy.verification import POSITIONS

    request = BuildRequest(
        model=model,
        output=output,
        recipe=recipe,
        targets=tuple(target or ("cpu",)),
        max_context=max_context,
        max_slots=max_slots,
        revision=revision,
        adapter=adapter,
        calibration=calibration,
        gate_positions=POSITIONS if gate_positions is None else gate_positions,
        accept_degraded=accept_degraded,
        sign_with=sign_with,
        cache=not no_cache,
    )
    if plan:
        with Progress(quiet=quiet) as progress:
            planned = plan_artifact(request, progress.show)
        print(json.dumps(dataclasses.asdict(planned), ensure_ascii=False) if as_json else _plan_text(planned))
        if planned.problems:
            raise typer.Exit(BuildError.exit_code)
        return
    with Progress(quiet=quiet) as progress:
        report = build_artifact(request, progress.show)
    if as_json:
        print(json.dumps(dataclasses.asdict(report), default=str, ensure_ascii=False))
        return
    print(f"\n{report.model} as {report.recipe} -> {report.output}  ({report.size / 1e6:,.0f} MB)")
    for gate in report.gates:
        print(f"  {gate}")
    if report.degraded:
        print(f"  degraded, shipped all the same: {report.degraded}")
    print(
        "  "
        + ", ".join(
            f"{name} {'reused' if name in report.reused else f'{seconds:.1f} s'}"
            for name, seconds in report.stages.items()
        )
    )
    print(f"\nServe it:  hermes-deploy serve {report.output}")


def _plan_text(plan: PlanReport) -> str:
    from hermes_deploy.pipeline.estimate import gigabytes

    need = plan.estimate
    rows = [
        (stage.stage, "reused", "", "")
        if stage.reused
        else (stage.stage, "run", gigabytes(stage.memory), gigabytes(stage.disk))
        for stage in need.stages
    ]
    lines = [f"{plan.model} as {plan.recipe} for {', '.join(plan.targets)}", ""]
    lines += [f"{a:<28} {b:<7} {c:>10} {d:>10}" for a, b, c, d in [("stage", "", "memory", "disk"), *rows]]
    lines += [
        "",
        f"memory at most {gigabytes(need.memory)}, free {gigabytes(plan.free_memory)}",
        f"disk for the cache {gigabytes(need.cache)}, free {gigabytes(plan.free_cache)}",
        f"disk for the artifact {gigabytes(need.artifact)}, free {gigabytes(plan.free_output)}",
        *(
            f"keys and values of a server with full slots, {name}: {gigabytes(size)}"
            for name, size in need.caches.items()
        ),
        *(f"it does not fit: {problem}" for problem in plan.problems),
    ]
    return "\n".join(lines)
