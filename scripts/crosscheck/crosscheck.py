"""Do others' tools agree with ours, and does TensorRT's parser take what all of us write? Prints rows, writes JSON.

    scripts/crosscheck/run [optimum] [modelopt] [genai] [--folder DIR] [--json docs/benchmarks/crosscheck.json]

A tool that cannot be installed, and a recipe that is not there, are rows with their error; rows of
tools that were not asked for stay as they are in the file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # tests/fixtures

from environments import HERE, ROOT, ToolUnavailableError, run_theirs, version
from linears import agreement, distance, read
from subjects import Subject, make_subject, our_graphs, our_linears, our_plain_graph

from hermes_deploy.errors import HermesDeployError
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target

Row = dict[str, Any]

SAME_LOGITS = 2e-4
"""Largest absolute difference of fp32 logits that counts as the same graph."""

SAME_ERROR = 1.1
"""Our relative error may be this many times theirs; less is better."""

ON_PURPOSE = {
    "column_scale: behind the product / at the weight": "else TensorRT's sums would overflow fp16 (docs/tensorrt.md)",
}
"""Differences of form that we mean."""

MODELOPT = (
    # modelopt's mode and method, our recipe, our target
    ("int4", "rtn_dq", "int4-rtn", "sm89"),
    ("int4", "awq_clip", "int4-awq", "sm89"),
    ("fp8", "max", "fp8", "sm89"),
    ("int8", "max", "int8-sq", "sm89"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"of: {', '.join(TOOLS)}; all without")
    parser.add_argument("--folder", type=Path, help="keeps the graphs there instead of in a temporary folder")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "benchmarks" / "crosscheck.json")
    options = parser.parse_args()
    if unknown := set(options.tools) - set(TOOLS):
        parser.error(f"no such tool: {', '.join(sorted(unknown))}; tools are: {', '.join(TOOLS)}")
    tools = options.tools or list(TOOLS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        subject = make_subject(folder)
        for tool in tools:
            for row in rows_of(tool, subject):
                rows.append(row)
                print(line(row), flush=True)
    kept = json.loads(options.json.read_text())["rows"] if options.json.is_file() else []
    rows = [row for row in kept if row["tool"] in TOOLS and row["tool"] not in tools] + rows
    rows.sort(key=lambda row: list(TOOLS).index(row["tool"]))
    options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row["agrees"] is not False for row in rows) else 1


def rows_of(tool: str, subject: Subject) -> Iterator[Row]:
    try:
        for row in TOOLS[tool](subject):
            yield {"tool": tool, **row}
    except ToolUnavailableError as error:
        yield {"tool": tool, "check": "runs here", "agrees": None, "error": str(error)}


def optimum(subject: Subject) -> Iterator[Row]:
    theirs = export_with_optimum(subject)
    about = f"{version('optimum', 'optimum')}, {version('optimum', 'optimum-onnx')}"
    wanted = subject.logits(theirs)
    for dialect in ("portable", "ort"):
        difference = float(np.abs(subject.logits(our_plain_graph(subject, dialect, "fp32")) - wanted).max())
        yield {
            "check": f"the same fp32 logits as our {dialect} graph",
            "about": about,
            "largest_difference": difference,
            "agrees": difference <= SAME_LOGITS,
        }
    yield parsed("optimum's export", theirs)
    yield parsed("our portable graph, fp16", our_plain_graph(subject, "portable", "fp16"))


def modelopt(subject: Subject) -> Iterator[Row]:
    plain = export_with_optimum(subject)
    about = version("modelopt", "nvidia-modelopt")
    for mode, method, recipe, name in MODELOPT:
        check = f"{mode} {method} against our {recipe}"
        try:
            yield from modelopt_scheme(subject, plain, mode, method, recipe, name, {"check": check, "about": about})
        except (ToolUnavailableError, HermesDeployError) as error:
            yield {"check": check, "about": about, "agrees": None, "error": str(error)}


def modelopt_scheme(
    subject: Subject, plain: Path, mode: str, method: str, recipe_name: str, target_name: str, head: Row
) -> Iterator[Row]:
    """Form and error of one scheme, and whether TensorRT parses both graphs."""
    recipe, wanted = load_recipe(recipe_name), target(target_name)
    also_head = ["--head"] if recipe.head not in ("activation", "fp16", "fp32") else []
    file = str(subject.folder / f"modelopt-{mode}-{method}.onnx")
    run_theirs("modelopt", "modelopt_quantize.py", str(plain), str(subject.ids_file), mode, method, file, *also_head)
    ours = our_graphs(subject, recipe, wanted)
    config = subject.checkpoint.config
    source = read(plain, config)
    mine, theirs = our_linears(subject, ours), read(Path(file), config)
    both = [name for name in source if mine[name][0] is not None and theirs[name][0] is not None]
    one_only = {name for name in source if (mine[name][0] is None) != (theirs[name][0] is None)}
    forms = {json.dumps((asdict(mine[name][0]), asdict(theirs[name][0]))) for name in both}  # type: ignore[arg-type]
    found = {each for pair in forms for each in agreement(*json.loads(pair))}
    differs = sorted(found - ON_PURPOSE.keys())
    yield {
        **head,
        "check": f"{head['check']}: form",
        "linears": len(both),
        "form": [json.loads(pair)[0] for pair in sorted(forms)],
        "on_purpose": {each: ON_PURPOSE[each] for each in sorted(found & ON_PURPOSE.keys())},
        "differs": differs + [f"{name} is quantized by one of the two only" for name in sorted(one_only)],
        "agrees": not differs and not one_only,
    }
    errors = {"ours": [], "theirs": []}
    for name in both:
        errors["ours"].append(distance(mine[name][1], source[name][1]))
        errors["theirs"].append(distance(theirs[name][1], source[name][1]))
    weights = {**head, "check": f"{head['check']}: weights", **compared(*map(np.mean, errors.values()))}
    # what looks at activations trades error of weights for error of outputs: there it is a fact to print
    yield weights if recipe.method == "rtn" else {**weights, "agrees": None}
    wanted_logits = subject.logits(plain)
    off = [distance(subject.logits(path), wanted_logits) for path in (ours.twin, Path(file))]
    yield {**head, "check": f"{head['check']}: logits", **compared(*off)}
    yield parsed(f"modelopt's {mode} {method}", Path(file))
    yield parsed(f"our {recipe_name} for {target_name}", ours.shipped)


def compared(ours: float, theirs: float) -> Row:
    """Relative errors against the unquantized model."""
    ratio = float(ours / theirs)
    return {"ours": float(ours), "theirs": float(theirs), "ratio": ratio, "agrees": ratio <= SAME_ERROR}


def genai(subject: Subject) -> Iterator[Row]:
    about = version("genai", "onnxruntime-genai")
    built = {
        precision: Path(
            run_theirs(
                "genai",
                "genai_build.py",
                str(subject.hugging_face),
                str(subject.folder / f"genai-{precision}"),
                precision,
            )["file"]
        )
        for precision in ("fp32", "int4")
    }
    plain = our_plain_graph(subject, "ort", "fp32")
    wanted = subject.logits(plain)
    difference = float(np.abs(subject.logits(built["fp32"]) - wanted).max())
    check = "the same fp32 logits as our ort graph"
    yield {"check": check, "about": about, "largest_difference": difference, "agrees": difference <= SAME_LOGITS}
    ours = our_graphs(subject, load_recipe("int4-rtn"), target("cpu"))
    found = [distance(subject.logits(path), wanted) for path in (ours.shipped, built["int4"])]
    yield {"check": "int4 against our int4-rtn for cpu: logits", "about": about, **compared(*found)}
    yield parsed("genai's fp32", built["fp32"])


def export_with_optimum(subject: Subject) -> Path:
    folder = subject.folder / "optimum"
    if not (folder / "model.onnx").is_file():
        run_theirs("optimum", "optimum_export.py", str(subject.hugging_face), str(folder))
    return folder / "model.onnx"


def parsed(what: str, path: Path) -> Row:
    command = [sys.executable, str(HERE / "tensorrt_parse.py"), str(path)]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    # of others' graphs it is a fact, of ours a promise
    agrees = answer["parsed"] if what.startswith("our ") else None
    row = {"check": f"TensorRT parses {what}", "parsed": answer["parsed"], "agrees": agrees}
    return row if answer["error"] is None else {**row, "error": answer["error"]}


def line(row: Row) -> str:
    said = {True: "agrees", False: "DIFFERS", None: "-"}[row["agrees"]]
    facts = [
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if key not in ("tool", "check", "agrees", "about", "form") and value not in ([], {})
    ]
    return f"{row['tool']}: {row['check']}: {said}; {', '.join(facts)}"


TOOLS: dict[str, Callable[[Subject], Iterator[Row]]] = {"optimum": optimum, "modelopt": modelopt, "genai": genai}

if __name__ == "__main__":
    sys.exit(main())
