"""A tiny but real artifact: random weights, byte tokenizer, one CPU engine, manifest. Made in about a second."""

from __future__ import annotations

from pathlib import Path

from hermes_deploy.checkpoints import open_checkpoint
from hermes_deploy.graphs import GraphSpec, build_decoder, save_model
from hermes_deploy.repository.assemble import assemble
from hermes_deploy.repository.engine_config import EngineConfig, EngineTarget, sampling_defaults
from hermes_deploy.repository.manifest import (
    SCHEMA,
    GateEntry,
    Manifest,
    ModelEntry,
    TargetEntry,
    hash_file,
    list_files,
    write_manifest,
)
from tests.fixtures.tiny import make_mistral

MAX_CONTEXT = 8192
"""Long, so that an answer can go on for seconds: what cancels it must be the cancellation."""
MAX_SLOTS = 4
ENGINE_FILES = ("cpu/model.onnx", "cpu/model.onnx.data")


def make_artifact(work: Path, target: str = "cpu") -> Path:
    """Writes `work`/artifact, with its engine under the name of `target`."""
    checkpoint = open_checkpoint(str(make_mistral(work / "checkpoint", max_position_embeddings=MAX_CONTEXT)))
    files = [name.replace("cpu", target) for name in ENGINE_FILES]
    graph = work / "model.onnx"
    save_model(build_decoder(GraphSpec(checkpoint.config, "ort", "fp32", MAX_CONTEXT), checkpoint.tensors), graph)
    config = EngineConfig(
        model="tiny",
        family=checkpoint.family,
        targets=(
            EngineTarget(name=target, engine="onnxruntime", precision="fp32", model=files[0], files=tuple(files)),
        ),
        max_context=MAX_CONTEXT,
        max_slots=MAX_SLOTS,
        vocab_size=checkpoint.config.vocab_size,
        stop_ids=(),  # random weights meet one after some hundred tokens: tests want answers that go on
        sampling=sampling_defaults(checkpoint.generation, checkpoint.family),
    )
    artifact = work / "artifact"
    artifact.mkdir()
    sources = dict(zip(files, (graph, graph.with_name("model.onnx.data")), strict=True))
    papers = {"license_text": "none\n", "citation": "", "model_card": ""}
    assemble(artifact, config, checkpoint.tokenizer, sources, **papers)
    seal(artifact, config)
    return artifact


MEASURES = {"kl": 0.01, "top1": 0.99, "perplexity_ratio": 1.0, "tensor_error": 0.1, "positions": 100}


def seal(artifact: Path, config: EngineConfig, *, degraded: str | None = None) -> None:
    """Writes the manifest over what lies in the folder now. `degraded`: why it ships with a failed gate."""
    problems = [] if degraded is None else ["mean KL in nats is 0.01, allowed is at most 0.001"]
    gate = GateEntry(
        passed=degraded is None, reference="itself", measures=MEASURES, thresholds={"max_kl": 0.001}, problems=problems
    )
    model = ModelEntry(
        name=config.model,
        source="tests",
        revision=None,
        sha256="0" * 64,
        family=config.family,
        architecture="MistralForCausalLM",
        parameters=1,
        license_id="unknown",
        weights_note="random",
        adapter=None,
    )
    targets = [
        TargetEntry(
            name=t.name,
            engine=t.engine,
            precision=t.precision,
            block_size=None,
            engine_files=[f"hermes_engine/1/{name}" for name in t.files],
            tensors_sha256="0" * 64,
            gated_tensors_sha256="0" * 64,
            gate=gate,
        )
        for t in config.targets
    ]
    write_manifest(
        artifact,
        Manifest(
            schema_version=SCHEMA,
            model=model,
            recipe={"name": "fp32", "description": "for tests"},
            calibration=None,
            max_context=config.max_context,
            max_slots=config.max_slots,
            targets=targets,
            degraded=degraded,
            versions={},
            machine="x86_64",
            created="2026-01-01T00:00:00Z",
            files={name: hash_file(artifact / name) for name in list_files(artifact)},
        ),
    )
