"""`hermes-deploy build`: a checkpoint in, a verified Triton model repository out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


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
            help="By name: int4-awq, int4-rtn, int8-sq, fp8, w4a8, nvfp4, fp16, fp32; or the path of a .yaml file."
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
    from hermes_deploy.pipeline import BuildRequest, build_artifact

    request = BuildRequest(
        model=model,
        output=output,
        recipe=recipe,
        targets=tuple(target or ("cpu",)),
        max_context=max_context,
        max_slots=max_slots,
        revision=revision,
        cache=not no_cache,
    )
    with Progress(quiet=quiet) as progress:
        report = build_artifact(request, progress.show)
    if as_json:
        print(json.dumps(dataclasses.asdict(report), default=str, ensure_ascii=False))
        return
    print(f"\n{report.model} as {report.recipe} -> {report.output}  ({report.size / 1e6:,.0f} MB)")
    for gate in report.gates:
        print(f"  {gate}")
    print("  " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.stages.items()))
    print(f"\nServe it:  hermes-deploy serve {report.output}")
