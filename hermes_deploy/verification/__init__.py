"""The gate between a build and its publication.

    reference = prepare_reference(checkpoint, tokenizer)     # once a build, seconds for the demo
    result = run_gate(reference, onnx_path, target, recipe)  # for every graph; GateError when it fails
    tensors_sha256(onnx_path)                                # what went into an engine, as one hash

The graph that runs here is the very file that the engine is made from.
"""

from hermes_deploy.verification.gate import GateResult, compare, over_threshold, run_gate
from hermes_deploy.verification.measures import Measures
from hermes_deploy.verification.reference import Reference, heldout_chats, prepare_reference, reference_of
from hermes_deploy.verification.tensor_error import TensorError, tensor_error
from hermes_deploy.verification.tensors import tensors_sha256

__all__ = [
    "GateResult",
    "Measures",
    "Reference",
    "TensorError",
    "compare",
    "heldout_chats",
    "over_threshold",
    "prepare_reference",
    "reference_of",
    "run_gate",
    "tensor_error",
    "tensors_sha256",
]
