"""The gate on the real demo model at the thresholds that ship: int4 passes, damage does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hermes_deploy.chat import ChatTokenizer
from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.checkpoints.checkpoint import Checkpoint, LazyTensor
from hermes_deploy.errors import GateError
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.quantization import ActivationRanges, calibrate, calibration_chats, quantize
from hermes_deploy.recipes import load_recipe
from hermes_deploy.targets import target
from hermes_deploy.verification import Reference, compare, over_threshold, prepare_reference, run_gate
from hermes_deploy.verification.candidate import Candidate
from tests.verification.damage import scrambled_head, scrambled_layer

CPU, INT4 = target("cpu"), load_recipe("int4-awq")


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return open_checkpoint("smollm2")


@pytest.fixture(scope="module")
def ranges(demo: Checkpoint) -> ActivationRanges:
    tokenizer = ChatTokenizer(demo.tokenizer)
    chats = calibration_chats(INT4.calibration_chats)
    return calibrate(demo.config, demo.tensors, [tokenizer.encode_chat(chat) for chat in chats])


@pytest.fixture(scope="module")
def reference(demo: Checkpoint) -> Reference:
    return prepare_reference(demo, ChatTokenizer(demo.tokenizer), positions=1400)


def build(demo: Checkpoint, tensors: Mapping[str, LazyTensor], ranges: ActivationRanges, folder: Path) -> Path:
    model = build_decoder(GraphSpec(demo.config, "ort", "fp32", 512, embedding="fp16"), tensors)
    quantize(model, INT4, CPU, ranges)
    save_model(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.slow
def test_the_int4_build_passes_with_its_numbers_and_says_what_the_reference_was(
    demo: Checkpoint, ranges: ActivationRanges, reference: Reference, tmp_path: Path
) -> None:
    result = run_gate(reference, build(demo, demo.tensors, ranges, tmp_path), CPU, INT4)
    assert 1300 <= result.measures.positions <= 1500
    assert result.measures.kl < 0.6 * INT4.thresholds(0).max_kl
    assert result.measures.tensor_error < 0.15
    assert "dequantized from GGUF" in result.reference


@pytest.mark.slow
def test_one_scrambled_layer_is_refused_by_its_answers_alone(
    demo: Checkpoint, ranges: ActivationRanges, reference: Reference, tmp_path: Path
) -> None:
    path = build(demo, scrambled_layer(demo, 12), ranges, tmp_path)
    found = compare(reference, Candidate(path, 256), CPU)
    assert len(over_threshold(found.measures(0.0), INT4.thresholds(0))) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "head", "matrix"), [(5, 3, "q"), (20, 8, "o")])
def test_one_scrambled_head_is_refused_although_its_answers_hardly_differ(
    layer: int, head: int, matrix: str, demo: Checkpoint, ranges: ActivationRanges, reference: Reference, tmp_path: Path
) -> None:
    path = build(demo, scrambled_head(demo, layer, head, matrix), ranges, tmp_path)
    few = replace(
        reference,
        sequences=reference.sequences[:2],
        hidden=reference.hidden[: sum(map(len, reference.sequences[:2]))],
    )
    with pytest.raises(GateError, match=rf"worst: layers\.{layer}\..*group {head}\) is 1\.\d+, allowed"):
        run_gate(few, path, CPU, INT4)
