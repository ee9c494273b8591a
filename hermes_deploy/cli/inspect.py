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
    """Shows model, precision, targets, sizes, gate results, signature and versions of an artifact.

    Reads manifest.json only; to check the bytes and the signature, run validate.
    """
    from hermes_deploy.errors import ArtifactError
    from hermes_deploy.repository.manifest import MANIFEST, read_manifest
    from hermes_deploy.repository.signature import is_signed

    manifest = read_manifest(artifact)
    if as_json:
        print(json.dumps({**manifest.model_dump(), "signed": is_signed(artifact)}, ensure_ascii=False))
        return
    try:
        _print(manifest, is_signed(artifact))
    except KeyError as error:
        raise ArtifactError(f"{artifact / MANIFEST} is damaged: it has no {error}. Build the artifact again.") from None


def _print(manifest: Manifest, signed: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from hermes_deploy.repository.manifest import SIGNATURE

    console = Console(highlight=False)
    model = manifest.model
    size = sum(entry.size for entry in manifest.files.values())
    if manifest.degraded is not None:
        console.print(f"DEGRADED: its gate failed and it was shipped all the same: {manifest.degraded}", markup=False)
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("model", f"{model.name} ({model.parameters / 1e6:,.0f} M parameters, {model.architecture}, {model.family})"),
        ("source", f"{model.source}{'@' + model.revision if model.revision else ''}  sha256 {model.sha256[:16]}…"),
        ("weights", model.weights_note or "as published"),
        ("adapter", _adapter(manifest)),
        ("licence", model.license_id),
        ("recipe", f"{manifest.recipe['name']}: {manifest.recipe['description']}"),
        ("calibration", _calibration(manifest)),
        ("limits", f"{manifest.max_context:,} tokens of context x {manifest.max_slots} chats at once"),
        ("size", f"{size / 1e6:,.1f} MB in {len(manifest.files)} files"),
        ("signature", f"{SIGNATURE} is there; validate --require-signature KEY checks it" if signed else "none"),
        ("built", f"{manifest.created}  {manifest.machine}, {_versions(manifest)}"),
    ):
        if value:
            facts.add_row(name, Text(value))
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
    for entry in manifest.targets:
        for problem in entry.gate.problems:
            console.print(f"{entry.name}: {problem}", markup=False)
    for reference in sorted({entry.gate.reference for entry in manifest.targets}):
        console.print(f"gate reference: {reference}", markup=False)


_NAMED = ("hermes-deploy", "python", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


def _versions(manifest: Manifest) -> str:
    """The versions that one asks for first, and where the others are."""
    named = [f"{name} {manifest.versions[name]}" for name in _NAMED if name in manifest.versions]
    others = len(manifest.versions) - len(named)
    return ", ".join(named) + (f" and {others} more (--json)" if others else "")


def _adapter(manifest: Manifest) -> str:
    adapter = manifest.model.adapter
    if adapter is None:
        return ""
    return (
        f"{adapter.name} merged: rank {adapter.rank}, alpha {adapter.alpha:g}, {adapter.merged_tensors} tensors "
        f"({', '.join(adapter.modules)})  sha256 {adapter.sha256[:16]}…"
    )


def _calibration(manifest: Manifest) -> str:
    used = manifest.calibration
    if used is None:
        return ""
    return f"{used.chats:,} chats, {used.tokens:,} tokens ({used.source})  sha256 {used.sha256[:16]}…"
