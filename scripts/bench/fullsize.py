"""Does a whole 7B go through on 2 cores and 24 GB? Generated weights of the true shape; a table and JSON.

    .venv/bin/python scripts/bench/fullsize.py [--folder DIR] [--json docs/benchmarks/fullsize.json]
                                               [--rows export int4 fp8 nemo awq] [--layers 4]

Every row is a process of its own, and its memory is sampled over that process and its children. The
folder (default: a temporary one) needs 20 GB; what is written there is removed again.
`--layers` tries it all with fewer layers; limits are then not looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from generated_weights import GeneratedTensors, generated_preparation, mistral_7b, mistral_nemo
from peak_memory import Measured, measure

from hermes_deploy.checkpoints.checkpoint import DecoderConfig
from hermes_deploy.engines import build_engine, serving_profiles
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.quantization import prepare, quantize
from hermes_deploy.quantization.calibration import CHAT_TOKENS
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target

PREFILL_CHUNK = 512
GPUS = (("L4", 300, 30.3), ("H100 SXM", 3350, 66.9))
"""GB/s and dense fp32 TFLOP/s in NVIDIA's data sheets."""

GB = 1e9


@dataclass(frozen=True)
class Work:
    """One row: `step` is what its process does. `keeps` and `needs` are graphs in the folder.

    Limits are None where the row only prepares another one.
    """

    name: str
    title: str
    step: str
    model: str
    recipe: str
    targets: tuple[str, ...]
    seconds: float | None = None
    anonymous_gb: float | None = None


def plan(int4: str) -> dict[str, tuple[Work, ...]]:
    """The rows by the name that `--rows` takes; `int4` is the recipe of the 4-bit rows."""
    every = ("sm80", "sm86", "sm89", "sm120")
    return {
        "export": (
            Work("export", f"7B: export + {int4}, CPU and portable", "graph", "7b", int4, ("cpu", "sm80"), 90, 3),
        ),
        "int4": (
            Work("int4 graph", "7B INT4 graph for the engine", "graph", "7b", int4, ("sm80",)),
            Work("int4", "7B INT4 engine, sm80+86+89+120 in one", "engine", "7b", int4, every, 100, 10.5),
        ),
        "fp8": (
            Work("fp8 graph", "7B FP8 graph for the engine", "graph", "7b", "fp8", ("sm89",)),
            Work("fp8", "7B FP8 engine, sm89", "engine", "7b", "fp8", ("sm89",), 75, 19),
        ),
        "nemo": (
            Work("nemo graph", "12B (Mistral NeMo) INT4 graph for the engine", "graph", "nemo", int4, ("sm89",)),
            Work("nemo", "12B (Mistral NeMo) INT4 engine, sm89", "engine", "nemo", int4, ("sm89",), None, 22),
        ),
        "awq": (Work("awq", "7B: one layer of int4-awq for sm89", "awq", "7b", "int4-awq", ("sm89",)),),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where graphs and engines are written; needs 20 GB")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the true ones, for a try")
    parser.add_argument("--int4", default="int4-rtn", help="recipe of the 4-bit rows")
    parser.add_argument("--rows", nargs="+", default=["export", "int4", "fp8", "nemo", "awq"])
    parser.add_argument("--do", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        print(json.dumps(do(Work(**json.loads(options.do.read_text())), options.layers, options.do.parent)))
        return 0
    works = plan(options.int4)
    rows = []
    for name in options.rows:
        with tempfile.TemporaryDirectory(prefix="fullsize-", dir=options.folder) as folder:
            rows += [run(work, options.layers, Path(folder)) for work in works[name]]
    report = {"machine": machine(), "layers": options.layers or "all", "rows": rows}
    print(f"\n{report['machine']}; layers: {report['layers']}\n\n{table(rows)}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row["within"] is not False for row in rows) else 1


def run(work: Work, layers: int | None, folder: Path) -> dict[str, Any]:
    """One row, in a process of its own, measured from outside."""
    print(f"{work.title} ...", file=sys.stderr, flush=True)
    order = folder / "work.json"
    order.write_text(json.dumps(asdict(work)))
    command = [sys.executable, __file__, "--do", str(order), *(["--layers", str(layers)] if layers else [])]
    found: Measured = measure(command)
    row: dict[str, Any] = {"work": work.title, "limit_s": work.seconds, "limit_gb": work.anonymous_gb}
    if found.code:
        return {**row, "error": f"ended with code {found.code}", "within": False}
    facts = json.loads(found.output.splitlines()[-1])
    row |= {
        "seconds": round(facts.pop("seconds"), 1),
        "process_seconds": round(found.seconds, 1),
        "cpu_seconds": round(found.cpu_seconds, 1),
        "anonymous_gb": round(found.anonymous / GB, 2),
        "resident_gb": round(found.resident / GB, 2),
        "largest_process_gb": round(found.largest_process / GB, 2),
        **facts,
    }
    limits = ((row["seconds"], work.seconds), (row["anonymous_gb"], work.anonymous_gb))
    looked_at = [value <= limit for value, limit in limits if limit is not None]
    return {**row, "within": all(looked_at) if looked_at and not layers else None}


def do(work: Work, layers: int | None, folder: Path) -> dict[str, Any]:
    """The work itself; `seconds` without the time that the weights took to be made."""
    config = {"7b": mistral_7b, "nemo": mistral_nemo}[work.model](*([layers] if layers else []))
    began = time.perf_counter()
    if work.step == "awq":
        return one_layer_of_awq(work, folder)
    facts = graphs(work, config, folder) if work.step == "graph" else engine(work, folder)
    return {"seconds": time.perf_counter() - began - facts.get("generating_seconds", 0.0), **facts}


def graphs(work: Work, config: DecoderConfig, folder: Path) -> dict[str, Any]:
    """One saved graph a target, as `build` saves it."""
    recipe, spent, written = load_recipe(work.recipe), 0.0, 0
    for name in work.targets:
        wanted = target(name)
        tensors = GeneratedTensors(config)
        spec = GraphSpec(config, wanted.dialect, wanted.activation, recipe.max_context, embedding=recipe.embedding)
        model = build_decoder(spec, tensors)
        quantize(model, recipe, wanted, generated_preparation(config) if recipe.calibration_chats else None)
        path = folder / wanted.dialect / "model.onnx"
        path.parent.mkdir()
        save_model(model, path)
        spent += tensors.seconds_spent
        written += sum(file.stat().st_size for file in path.parent.iterdir())
    return {"generating_seconds": round(spent, 1), "written_gb": round(written / GB, 2)}


def engine(work: Work, folder: Path) -> dict[str, Any]:
    recipe = load_recipe(work.recipe)
    built = build_engine(
        folder / "portable" / "model.onnx",
        [target(name) for name in work.targets],
        folder / "engine",
        recipe=recipe,
        profiles=serving_profiles(PREFILL_CHUNK, recipe.max_slots),
    )
    size = built.plan.stat().st_size
    shutil.rmtree(folder / "engine")
    return {"written_gb": round(size / GB, 2), "gemms": built.sidecar.layers.gemms}


def one_layer_of_awq(work: Work, folder: Path) -> dict[str, Any]:
    """The second of two layers: its calibration and its rounding, and what 32 of them would take.

    The projection to a GPU says what the same arithmetic would take at a GPU's rates: the smaller of
    its two advantages, memory bandwidth and fp32 products, over what this machine was just measured at.
    """
    config, recipe, wanted = mistral_7b(2), load_recipe(work.recipe), target(work.targets[0])
    tensors = GeneratedTensors(config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (recipe.calibration_chats, CHAT_TOKENS))
    marks: dict[str, float] = {}

    def mark(name: str) -> None:
        marks.setdefault(name, time.perf_counter() - tensors.seconds_spent)

    preparation = prepare(config, tensors, ids.tolist(), recipe, wanted, lambda done, _: mark(f"calibrated {done}"))
    spec = GraphSpec(config, wanted.dialect, wanted.activation, recipe.max_context, embedding=recipe.embedding)
    model = build_decoder(spec, preparation.tensors(config, tensors))
    quantize(model, recipe, wanted, preparation)
    save_model(model, folder / "model.onnx", lambda name, _done, _total: mark("at " + name.split(".weight")[0]))
    first, behind = (f"at {name}" for name in ("layers.1.input_norm", "norm"))
    calibrating, rounding = marks["calibrated 2"] - marks["calibrated 1"], marks[behind] - marks[first]
    layer = calibrating + rounding
    bandwidth, products = rates()
    return {
        "seconds": layer,
        "calibrating_seconds": round(calibrating, 1),
        "rounding_seconds": round(rounding, 1),
        "positions": int(ids.size),
        "all_32_layers_seconds": round(32 * layer),
        "here": {"gb_per_s": round(bandwidth), "tflops": round(products, 2)},
        "all_32_layers_projected_seconds": {
            name: round(32 * layer / min(gb / bandwidth, tflops / products), 1) for name, gb, tflops in GPUS
        },
    }


def rates() -> tuple[float, float]:
    """This machine's GB/s of a copy (read and written) and fp32 TFLOP/s of a product, best of three."""
    source, product = np.ones(1 << 27, np.float32), np.ones((4096, 4096), np.float32)
    copied = np.empty_like(source)

    def best(what: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            began = time.perf_counter()
            what()
            times.append(time.perf_counter() - began)
        return min(times)

    return 2 * source.nbytes / best(lambda: np.copyto(copied, source)) / 1e9, 2 * 4096**3 / best(
        lambda: product @ product
    ) / 1e12


def machine() -> str:
    lscpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    model = next((line.split(":", 1)[1].strip() for line in lscpu.splitlines() if line.startswith("Model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    return (
        f"{platform.machine()} ({model}), {os.cpu_count()} cores, {memory:.0f} GB, Python {platform.python_version()}"
    )


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| work | s | at most | GB without page cache | at most | GB with mapped pages | weights, s | written, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['work']} | {row['error']} | | | | | | |")
            continue
        cells = ("seconds", "limit_s", "anonymous_gb", "limit_gb", "resident_gb", "generating_seconds", "written_gb")
        values = [row.get(cell) for cell in cells]
        lines.append(f"| {row['work']} | " + " | ".join("" if v is None else f"{v:g}" for v in values) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
