"""Results of stages as files, and back: npz without pickles, and JSON. Same result, same bytes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hermes_deploy.checkpoints.checkpoint import Checkpoint
from hermes_deploy.quantization import ActivationRanges
from hermes_deploy.verification import GateResult, Measures, Reference


def write_ranges(ranges: ActivationRanges, path: Path) -> None:
    arrays = {f"power/{name}": ranges.power[name] for name in sorted(ranges.power)}
    arrays |= {f"largest/{name}": np.asarray(ranges.largest[name]) for name in sorted(ranges.largest)}
    np.savez(path, counts=np.asarray([ranges.chats, ranges.tokens]), **arrays)


def read_ranges(path: Path) -> ActivationRanges:
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    chats, tokens = (int(n) for n in found["counts"])
    largest = {name.removeprefix("largest/"): float(a) for name, a in found.items() if name.startswith("largest/")}
    power = {name.removeprefix("power/"): a for name, a in found.items() if name.startswith("power/")}
    return ActivationRanges(largest, power, chats=chats, tokens=tokens)


def write_reference(reference: Reference, path: Path) -> None:
    lengths = [len(ids) for ids in reference.sequences]
    ids = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in reference.sequences])
    np.savez(path, hidden=reference.hidden, ids=ids, lengths=np.asarray(lengths), text=np.asarray(reference.text))


def read_reference(path: Path, checkpoint: Checkpoint) -> Reference:
    with np.load(path, allow_pickle=False) as file:
        starts = np.cumsum(file["lengths"])[:-1]
        sequences = tuple(tuple(int(i) for i in ids) for ids in np.split(file["ids"], starts))
        return Reference(checkpoint.config, checkpoint.tensors, sequences, file["hidden"], str(file["text"]))


def write_gate(result: GateResult, path: Path) -> None:
    path.write_text(json.dumps(asdict(result), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_gate(path: Path) -> GateResult:
    found = json.loads(path.read_text(encoding="utf-8"))
    return GateResult(**{**found, "measures": Measures(**found["measures"])})
