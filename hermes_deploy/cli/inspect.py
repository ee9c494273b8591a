"""`hermes-deploy inspect`: what an artifact says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hermes_deploy.repository.manifest import Manifest


def inspect(
    artifact: Annotated[Path, typer.Argument(help="Folder that build wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Shows model, precision, targets, sizes, gate results and versions of an artifact.

    Reads manifest.json only; to check the bytes, run validate.
    """
    from hermes_deploy.errors import ArtifactError
    from hermes_deploy.repository.manifest import MANIFEST, read_manifest

    manifest = read_manifest(artifact)
    if as_json:
        print(json.dumps(manifest.model_dump(), ensure_ascii=False))
        return
    try:
        _print(manifest)
    except KeyError as error:
        raise ArtifactError(f"{artifact / MANIFEST} is damaged: it has no {error}. Build the artifact again.") from None


def _print(manifest: Manifest) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    model = manifest.model
    size = sum(entry.size for entry in manifest.files.values())
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("model", f"{model.name} ({model.parameters / 1e6:,.0f} M parameters, {model.architecture}, {model.family})"),
        ("source", f"{model.source}{'@' + model.revision if model.revision else ''}  sha256 {model.sha256[:16]}…"),
        ("weights", model.weights_note or "as published"),
        ("licence", model.license_id),
        ("recipe", f"{manifest.recipe['name']}: {manifest.recipe['description']}"),
        ("limits", f"{manifest.max_context:,} tokens of context x {manifest.max_slots} chats at once"),
        ("size", f"{size / 1e6:,.1f} MB in {len(manifest.files)} files"),
        ("built", f"{manifest.created}  " + ", ".join(f"{k} {v}" for k, v in sorted(manifest.versions.items()))),
    ):
        facts.add_row(name, value)
    console.print(facts, markup=False)
    table = Table(padding=0)
    for title in ("target", "engine", "precision", "MB", "KL", "top-1", "perplexity", "tensor error", "gate"):
        table.add_column(title, overflow="fold")  # in a narrow terminal too, every digit is there
    for entry in manifest.targets:
        measures = entry.gate.measures
        block = f" b{entry.block_size}" if entry.block_size else ""
        table.add_row(
            entry.name,
            entry.engine,
            entry.precision + block,
            f"{sum(manifest.files[f].size for f in entry.engine_files) / 1e6:,.1f}",
            f"{measures['kl']:.4f}",
            f"{measures['top1']:.3f}",
            f"x{measures['perplexity_ratio']:.4f}",
            f"{measures['tensor_error']:.4f}",
            "passed" if entry.gate.passed else "FAILED",
        )
    console.print(table)
    for reference in sorted({entry.gate.reference for entry in manifest.targets}):
        console.print(f"gate reference: {reference}", markup=False)
