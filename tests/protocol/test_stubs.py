"""Our stubs are Triton's protocol, are reproducible, and live beside any other copy of it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format

from hermes_deploy.protocol import grpc_service_pb2, methods, model_config_pb2

ROOT = Path(__file__).resolve().parents[2]


def test_the_checked_in_stubs_are_what_the_generator_writes_byte_for_byte(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate_stubs", ROOT / "scripts" / "generate_stubs.py")
    assert spec and spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    for path in generator.generate(tmp_path):
        checked_in = ROOT / "hermes_deploy" / "protocol" / path.name
        assert checked_in.read_bytes() == path.read_bytes(), f"run scripts/generate_stubs.py: {path.name} differs"


OURS = "from hermes_deploy.protocol import grpc_service_pb2, model_config_pb2"
THEIRS = "from tritonclient.grpc import service_pb2, model_config_pb2 as their_config"
BOTH = """
request = grpc_service_pb2.ModelInferRequest(model_name="hermes", id="1")
request.parameters["a"].string_param = "b"
theirs = service_pb2.ModelInferRequest.FromString(request.SerializeToString())
assert theirs.model_name == "hermes" and theirs.parameters["a"].string_param == "b"
assert grpc_service_pb2.ModelInferRequest.FromString(theirs.SerializeToString()) == request
"""


@pytest.mark.parametrize("order", [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours first", "tritonclient first"])
def test_a_process_can_import_tritonclient_and_ours_in_either_order(order: tuple[str, str]) -> None:
    subprocess.run([sys.executable, "-c", "\n".join([*order, BOTH])], check=True, cwd=ROOT)


def test_a_model_config_survives_a_trip_through_text_and_tritons_own_parser() -> None:
    from tritonclient.grpc import model_config_pb2 as theirs

    config = model_config_pb2.ModelConfig(name="hermes_engine", backend="python")
    config.input.add(name="messages", data_type=model_config_pb2.TYPE_STRING, dims=[1], optional=True)
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    config.model_transaction_policy.decoupled = True
    config.parameters["slots"].string_value = "4"
    config.ensemble_scheduling.step.add(model_name="pre").input_map["a"] = "b"
    text = text_format.MessageToString(config)
    assert text_format.Parse(text, model_config_pb2.ModelConfig()) == config
    assert text_format.Parse(text, theirs.ModelConfig()).SerializeToString() == config.SerializeToString()


def test_methods_have_the_wire_paths_of_triton() -> None:
    assert methods.STREAM_INFER.path == "/inference.GRPCInferenceService/ModelStreamInfer"
    assert methods.STREAM_INFER.request is grpc_service_pb2.ModelInferRequest
    assert methods.STREAM_INFER.response is grpc_service_pb2.ModelStreamInferResponse
    assert methods.SERVER_READY.response is grpc_service_pb2.ServerReadyResponse
