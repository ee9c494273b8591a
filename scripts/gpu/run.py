"""The CUDA and TensorRT sessions on a machine with a GPU, end to end; writes JSON. How to run it: README.md here.

Every section is a process of its own with a time limit. One that fails leaves its traceback in the JSON,
which is written after each, and the next one starts.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# not installed: the driver's own files, the benchmark's generated weights, the tests' tiny model
sys.path[:0] = [str(ROOT), str(HERE), str(HERE.parent / "bench")]

import numpy as np  # noqa: E402
from engines import CHUNK, KINDS, SLOTS, Kind, make_graph, make_plan, open_engine  # noqa: E402

from hermes_deploy.machine import FLAVOURS, gpus, runnable, tensorrt_package  # noqa: E402
from hermes_deploy.targets import TARGETS  # noqa: E402

TEXT = 64
"""Tokens of the texts that answers are compared on, which is also the context of those models."""
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt-rtx", "tensorrt", "cuda-bindings", "numpy", "torch")
LIMIT_S = 3600


def main() -> int:
    options = arguments()
    if options.section:
        return child(options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report: dict[str, Any] = {"dry": options.dry, "layers": options.layers, "sections": {}}
        for name in options.only or SECTIONS:
            answer = section(name, folder, options)
            report["sections"][name] = answer
            print(f"{name}: {verdict(answer)} ({answer['seconds']:.1f} s)", flush=True)
            options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(answer["ok"] for answer in report["sections"].values()) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--folder", type=lambda path: Path(path).absolute())
    parser.add_argument("--gguf", type=Path, help="the demo model's file")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--only", nargs="+", choices=SECTIONS)
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    return parser.parse_args()


def section(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the section found, or how it ended; never raises."""
    out = folder / f"{name}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--section", name, "--folder", str(folder), "--layers", str(options.layers)]
    command += ["--dry"] if options.dry else []
    command += ["--gguf", str(options.gguf.absolute())] if options.gguf else []
    began = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        ended, words = f"ended with code {done.returncode}", done.stderr
    except subprocess.TimeoutExpired as error:
        ended, words = f"was ended after {LIMIT_S} s", (error.stderr or b"").decode("utf-8", "replace")
    answer: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"ok": False, "error": f"it {ended}"}
    if not answer["ok"]:
        answer["stderr"] = words[-4000:]
    return {**answer, "seconds": time.perf_counter() - began}


def child(options: argparse.Namespace) -> int:
    try:
        answer = SECTIONS[options.section](options)
        answer = {"ok": answer.get("ok", True), **answer}
    except Exception as error:
        answer = {"ok": False, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    (options.folder / f"{options.section}.json").write_text(json.dumps(answer), encoding="utf-8")
    return 0


def verdict(answer: dict[str, Any]) -> str:
    return "ok" if answer["ok"] else f"FAILED: {answer.get('error', 'see the JSON')}"


def machine(_options: argparse.Namespace) -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total,clocks.max.sm", "--format=csv"]
    try:
        smi = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
        said = (smi.stdout + smi.stderr).strip().splitlines()
    except OSError as error:
        said = [str(error)]
    import onnxruntime

    return {
        "nvidia-smi": said,
        "gpus": [{"name": gpu.name, "compute_capability": gpu.compute_capability} for gpu in gpus()],
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
        "providers": onnxruntime.get_available_providers(),
        "in the way of": {target.name: runnable(target) for target in TARGETS.values()},
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def rtx_loads(_options: argparse.Namespace) -> dict[str, Any]:
    """Asked of every package that is here, for every compute capability that it knows. `ok`: an answer was got."""
    answers = []
    for package in (name for name in FLAVOURS if tensorrt_package(name).present):
        for capability in capabilities(package):
            command = [sys.executable, str(HERE / "rtx_loads.py"), package, capability]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            lines = done.stdout.strip().splitlines()
            answers.append(
                json.loads(lines[-1])
                if lines
                else {
                    "package": package,
                    "capability": capability,
                    "died": done.returncode,
                    "said": done.stderr[-2000:],
                }
            )
    return {"ok": bool(answers), "engines": answers, "any runs": any(answer.get("ran") for answer in answers)}


def capabilities(package: str) -> list[str]:
    if package == "tensorrt":
        return [""]  # it builds for the GPU that it runs on
    code = f"import {package} as t; print(*t.ComputeCapability.__members__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return [name for name in done.stdout.split() if name != "NONE"]


def build(options: argparse.Namespace) -> dict[str, Any]:
    import models

    answer: dict[str, Any] = {}
    makers: dict[str, Callable[[Path], Any]] = {
        "tiny": lambda folder: models.tiny(folder, None),
        "tiny-window": lambda folder: models.tiny(folder, 7),
    }
    if options.gguf:
        makers["demo"] = lambda _: models.demo(options.gguf)
    for name, make in makers.items():
        folder = options.folder / name
        reference = make(folder / "checkpoint")
        tokens, logits = models.texts(reference, TEXT)
        np.savez(folder.with_suffix(".npz"), tokens=tokens, logits=logits)
        for kind in KINDS:
            make_graph(kind, reference.config, reference.tensors, folder, TEXT, recipe="fp16", dry=options.dry)
        if options.dry:
            # the plan is built for real, and lies apart: dry sessions run the fp32 graph
            folder = folder / "plan"
            make_graph("tensorrt", reference.config, reference.tensors, folder, TEXT, recipe="fp16", dry=False)
        if has_tensorrt():
            answer[name] = attempt(lambda folder=folder: make_plan(folder, "fp16", 16, models.ROWS))
        else:
            answer[name] = {"plan": "none: no TensorRT is installed"}
    return {"ok": all("error" not in each for each in answer.values()), "models": answer}


def has_tensorrt() -> bool:
    return any(tensorrt_package(name).version for name in FLAVOURS)


def attempt(what: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return what()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def correct(kind: Kind) -> Callable[[argparse.Namespace], dict[str, Any]]:
    def run(options: argparse.Namespace) -> dict[str, Any]:
        found = {}
        for file in sorted(options.folder.glob("*.npz")):
            folder = file.with_suffix("")
            found[file.stem] = attempt(lambda file=file, folder=folder: one(file, folder, options.dry))
        if not found:
            raise FileNotFoundError(f"{options.folder} has no texts to compare on; run the section build first")
        return {"ok": all(each.get("ok") for each in found.values()), "models": found}

    def one(file: Path, folder: Path, dry: bool) -> dict[str, Any]:
        from correctness import compare

        with np.load(file) as saved:
            tokens, logits = saved["tokens"], saved["logits"]
        session = open_engine(kind, folder, slots=len(tokens), chunk=16, dry=dry)
        try:
            return compare(session, tokens, logits)
        finally:
            session.close()

    return run


def speed(kind: Kind) -> Callable[[argparse.Namespace], dict[str, Any]]:
    def run(options: argparse.Namespace) -> dict[str, Any]:
        from generated_weights import GeneratedTensors, decoder, generated_preparation, mistral_7b
        from speed import DRY, FULL, measure, seconds

        folder = options.folder / "speed"
        config = decoder(256, 2, 512, 1000, heads=8, head_dim=32) if options.dry else mistral_7b(options.layers)
        context, chunk, slots = (64, 16, 4) if options.dry else (2048, CHUNK, SLOTS)
        answer: dict[str, Any] = {"recipe": "fp32" if options.dry else "int4-rtn", "context": context, "slots": slots}
        answer["graph_seconds"] = seconds(
            lambda: make_graph(
                kind,
                config,
                GeneratedTensors(config),
                folder,
                context,
                recipe="int4-rtn",
                preparation=generated_preparation(config),
                dry=options.dry,
            )
        )
        if kind == "tensorrt" and not options.dry:
            answer["engine"] = make_plan(folder, "int4-rtn", chunk, slots)
        began = time.perf_counter()
        session = open_engine(kind, folder, slots=slots, chunk=chunk, dry=options.dry)
        answer["open_seconds"] = time.perf_counter() - began
        try:
            return answer | measure(session, DRY if options.dry else FULL) | {"gpu_memory": gpu_memory()}
        finally:
            session.close()

    return run


def gpu_memory() -> str:
    """What nvidia-smi says is used, the engine and its caches included; empty without a GPU."""
    if not gpus():
        return ""
    query = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, timeout=60, check=False).stdout.strip()


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "machine": machine,
    "rtx-loads": rtx_loads,
    "build": build,
    **{f"correct-{kind}": correct(kind) for kind in KINDS},
    **{f"speed-{kind}": speed(kind) for kind in KINDS},
}


if __name__ == "__main__":
    sys.exit(main())
