"""Run as a program: calibrates and gates a model whose weights are never all in memory.

Its weights are made when they are asked for. Prints one line a stage, `name peak`, the peak of its
resident memory in MiB without pages of mapped files, which the system takes back when it needs them; the
last line is what the weights in float32 would take.
"""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from hermes_deploy.checkpoints.checkpoint import DecoderConfig, LazyTensor
from hermes_deploy.checkpoints.layout import expected_shapes
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.quantization import prepare, quantize
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target
from hermes_deploy.verification import reference_of, run_gate

CONFIG = DecoderConfig(
    architecture="MistralForCausalLM",
    vocab_size=320,
    hidden_size=1024,
    layers=12,
    heads=16,
    kv_heads=4,
    head_dim=64,
    intermediate_size=4096,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position=256,
)
_SLAB = (np.random.default_rng(0).normal(size=1 << 18) * 0.03).astype(ml_dtypes.bfloat16)


def tensors() -> dict[str, LazyTensor]:
    def lazy(index: int, name: str, shape: tuple[int, ...]) -> LazyTensor:
        def load() -> np.ndarray:
            if len(shape) == 1:
                return np.ones(shape, ml_dtypes.bfloat16)
            return np.resize(np.roll(_SLAB, 977 * index), shape)

        return LazyTensor(name, shape, "BF16", load)

    return {name: lazy(i, name, shape) for i, (name, shape) in enumerate(expected_shapes(CONFIG).items())}


class Peak:
    """Looks at the resident memory of this process every few milliseconds."""

    def __init__(self) -> None:
        self._largest = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._look()
            time.sleep(0.003)

    def _look(self) -> None:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        assert found is not None
        self._largest = max(self._largest, int(found[1]) >> 10)

    def tell(self, stage: str) -> None:
        self._look()
        print(stage.replace(" ", "-"), self._largest, flush=True)
        self._largest = 0


def main(folder: Path) -> None:
    weights = tensors()
    texts = [[(7 * i + j) % 256 for i in range(24)] for j in range(3)]
    tell = Peak().tell
    tell("start")
    reference = reference_of(CONFIG, weights, texts, "generated", prompts=texts[:1], length=3)
    tell("reference")
    for name, where in (("int4-rtn", "cpu"), ("fp8", "sm89")):
        recipe, goal = load_recipe(name), target(where)
        preparation = prepare(CONFIG, weights, texts, recipe, goal) if recipe.calibration_chats else None
        tell(f"calibrate {name}")
        made_of = weights if preparation is None else preparation.tensors(CONFIG, weights)
        model = build_decoder(GraphSpec(CONFIG, goal.dialect, goal.activation, 64), made_of)
        quantize(model, recipe, goal, preparation)
        path = folder / where / "model.onnx"
        path.parent.mkdir()
        save_model(model, path)
        tell(f"graph {where}")
        result = run_gate(reference, path, goal, recipe, tensors=made_of, accept_degraded=True)
        assert result.chain is not None and len(result.divergences) == 1
        tell(f"gate {where}")
    print("float32", sum(math.prod(tensor.shape) for tensor in weights.values()) * 4 >> 20)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
