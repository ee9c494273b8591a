"""config.pbtxt of the four models, as protobuf messages made from protocol/tensors.py.

Pure: an EngineConfig in, messages or text out; the same input gives the same bytes. Nothing in
the text has to be filled in. Source of the fields: Triton's public model_config.proto.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import text_format

from hermes_deploy.errors import ArtifactError
from hermes_deploy.protocol import model_config_pb2 as pb
from hermes_deploy.protocol.tensors import (
    ENGINE,
    ENSEMBLE,
    INPUT_IDS,
    LEASE,
    MODELS,
    PIECE,
    POSTPROCESS,
    PREPROCESS,
    PROMPT_AS_TEXT,
    SAMPLING,
    STREAM,
    Tensor,
)
from hermes_deploy.repository.engine_config import EngineConfig
from hermes_deploy.repository.triton_parameters import MAX_CONTEXT, MAX_SLOTS, TARGET

CONFIG = "config.pbtxt"

_HEADER = "# Written by hermes-deploy from its typed configuration; change the build, not this file.\n"


def model_configs(config: EngineConfig) -> dict[str, Any]:
    """A ModelConfig message for each of the four models, by model name."""
    engine = _python_model(ENGINE, decoupled=True)
    for name, value in (
        (MAX_CONTEXT, str(config.max_context)),
        (MAX_SLOTS, str(config.max_slots)),
        (TARGET, config.default_target),
    ):
        engine.parameters[name].string_value = value
    preprocess = _python_model(PREPROCESS)
    preprocess.parameters[MAX_CONTEXT].string_value = str(config.max_context)
    return {
        PREPROCESS: preprocess,
        ENGINE: engine,
        # one instance and no batching: pieces are rendered in the order in which they came
        POSTPROCESS: _python_model(POSTPROCESS),
        ENSEMBLE: _ensemble(),
    }


def config_texts(config: EngineConfig) -> dict[str, str]:
    """The text of config.pbtxt for each of the four models, by model name."""
    return {name: render(message) for name, message in model_configs(config).items()}


def render(message: Any) -> str:
    return _HEADER + text_format.MessageToString(message)


def with_parameters(text: str, **parameters: str) -> str:
    """The same config.pbtxt with some parameters replaced. Raises ArtifactError for text that is none."""
    message = pb.ModelConfig()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise ArtifactError(f"{CONFIG} cannot be read: {error}. Build the artifact again.") from None
    for name, value in parameters.items():
        message.parameters[name].string_value = value
    return render(message)


def _python_model(name: str, *, decoupled: bool = False) -> Any:
    message = _described(name)
    message.backend = "python"
    message.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    message.model_transaction_policy.decoupled = decoupled
    return message


def _ensemble() -> Any:
    message = _described(ENSEMBLE)
    message.platform = "ensemble"
    # inside the ensemble the engine's tensors are called raw_*: the post step gives the public names
    raw = {tensor.name: f"raw_{tensor.name}" for tensor in PIECE}
    _step(message, PREPROCESS, {t.name: t.name for t in PROMPT_AS_TEXT}, {INPUT_IDS.name: INPUT_IDS.name})
    _step(message, ENGINE, {t.name: t.name for t in (INPUT_IDS, *SAMPLING, STREAM, *LEASE)}, raw)
    _step(message, POSTPROCESS, raw, {t.name: t.name for t in PIECE})
    return message


def _step(ensemble: Any, model: str, inputs: dict[str, str], outputs: dict[str, str]) -> None:
    step = ensemble.ensemble_scheduling.step.add(model_name=model, model_version=-1)
    step.input_map.update(inputs)
    step.output_map.update(outputs)


def _described(name: str) -> Any:
    message = pb.ModelConfig(name=name, max_batch_size=0)
    tensors = MODELS[name]
    _add(message.input, tensors.inputs, optional=True)
    _add(message.output, tensors.outputs, optional=False)
    return message


def _add(field: Any, tensors: Iterable[Tensor], *, optional: bool) -> None:
    for tensor in tensors:
        wire = "TYPE_STRING" if tensor.dtype == "BYTES" else f"TYPE_{tensor.dtype}"
        entry = field.add(name=tensor.name, data_type=pb.DataType.Value(wire), dims=tensor.dims)
        if optional and tensor.optional:
            entry.optional = True
