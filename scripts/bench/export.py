"""Our export of the demo model against optimum-onnx's and onnxruntime-genai's; prints ratios, writes JSON.

    .venv/bin/python scripts/bench/export.py [--rounds 3] [--json docs/benchmarks/export.json]

All read the same Hugging Face folder (the demo's weights in bfloat16) and are compared at the same
precision: whole processes, from start to the written ONNX files, taking turns round by round. The
others run in the environments of `scripts/crosscheck`; one that cannot be had is a row with its error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "crosscheck"))

from environments import HERE, ToolUnavailableError, ensure
from fullsize import machine
from peak_memory import Measured, measure

from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.quantization import quantize
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target

RECIPES = {"fp32": "fp32", "int4": "int4-rtn"}
MEMORY_LIMIT = 0.3
"""Of the other's peak."""

Command = list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--do", nargs=3, metavar=("CHECKPOINT", "OUTPUT", "RECIPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        export(*options.do)
        return 0
    found: dict[tuple[str, str], list[Measured]] = {}
    errors: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_hugging_face(Path(folder) / "checkpoint")
        for number in range(options.rounds):
            for precision, recipe in RECIPES.items():
                for tool in ("ours", "genai", *(("optimum",) if precision == "fp32" else ())):
                    if any(row["tool"] == tool for row in errors):
                        continue
                    output = Path(folder) / f"{tool}-{precision}-{number}"
                    try:
                        done = measure(command(tool, checkpoint, output, precision, recipe))
                        if done.code:
                            raise ToolUnavailableError(f"its export ended with code {done.code}")
                    except ToolUnavailableError as error:
                        errors.append({"tool": tool, "error": str(error), "within": None})
                        continue
                    found.setdefault((precision, tool), []).append(done)
                    print(f"{precision} {tool}: {done.seconds:.1f} s, {done.resident / 1e6:.0f} MB", file=sys.stderr)
    rows = [row(precision, tool, found) for precision, tool in found if tool != "ours"] + errors
    print(f"{machine()}; {options.rounds} rounds, taking turns\n\n{table(rows)}")
    if options.json:
        report = {"machine": machine(), "rounds": options.rounds, "rows": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(each["within"] for each in rows) else 1


def command(tool: str, checkpoint: Path, output: Path, precision: str, recipe: str) -> Command:
    if tool == "ours":
        return [sys.executable, __file__, "--do", str(checkpoint), str(output), recipe]
    if tool == "optimum":
        return [str(ensure(tool)), str(HERE / "optimum_export.py"), str(checkpoint), str(output)]
    return [str(ensure(tool)), str(HERE / "genai_build.py"), str(checkpoint), str(output), precision]


def export(checkpoint_folder: str, output: str, recipe_name: str) -> None:
    """What `build --target cpu` does of it: checkpoint, graph, quantization, files."""
    checkpoint, recipe, wanted = open_checkpoint(checkpoint_folder), load_recipe(recipe_name), target("cpu")
    spec = GraphSpec(
        checkpoint.config, wanted.dialect, wanted.activation, recipe.max_context, embedding=recipe.embedding
    )
    model = build_decoder(spec, checkpoint.tensors)
    quantize(model, recipe, wanted)
    Path(output).mkdir()
    save_model(model, Path(output) / "model.onnx")


def write_hugging_face(folder: Path) -> Path:
    """The demo as its publisher's folder would look: safetensors in bfloat16, config, tokenizer."""
    import torch
    from safetensors.torch import save_file

    checkpoint = open_checkpoint("smollm2")
    config = checkpoint.config
    folder.mkdir()
    tensors = {
        name: torch.from_numpy(tensor.float32()).to(torch.bfloat16) for name, tensor in checkpoint.tensors.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    facts = {
        "architectures": [config.architecture],
        "model_type": {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"}[config.architecture],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    tokenizer = checkpoint.tokenizer
    (folder / "tokenizer.json").write_bytes(tokenizer.tokenizer_json)
    words = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "chat_template": tokenizer.chat_template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(words), encoding="utf-8")
    return folder


def row(precision: str, tool: str, found: dict[tuple[str, str], list[Measured]]) -> dict[str, Any]:
    """Medians of both and their ratios, ours over theirs."""
    values: dict[str, Any] = {"tool": tool, "precision": precision}
    for key, read in (
        ("seconds", lambda m: m.seconds),
        ("peak_mb", lambda m: m.resident / 1e6),
        ("anonymous_mb", lambda m: m.anonymous / 1e6),
    ):
        ours = statistics.median(read(each) for each in found[precision, "ours"])
        theirs = statistics.median(read(each) for each in found[precision, tool])
        values[key] = {"ours": round(ours, 2), "theirs": round(theirs, 2), "ratio": round(ours / theirs, 3)}
    values["within"] = values["seconds"]["ratio"] < 1 and values["peak_mb"]["ratio"] <= MEMORY_LIMIT
    return values


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| against | s, ours / theirs | ratio | peak RSS in MB, ours / theirs | ratio | without page cache, ratio |",
        "|---|---|---|---|---|---|",
    ]
    for each in rows:
        if "error" in each:
            lines.append(f"| {each['tool']} | {each['error']} | | | | |")
            continue
        time, peak, anonymous = each["seconds"], each["peak_mb"], each["anonymous_mb"]
        lines.append(
            f"| {each['tool']} {each['precision']} | {time['ours']:.1f} / {time['theirs']:.1f} | {time['ratio']:.2f} "
            f"| {peak['ours']:.0f} / {peak['theirs']:.0f} | {peak['ratio']:.2f} | {anonymous['ratio']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
