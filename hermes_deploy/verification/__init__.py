"""The gate between a build and its publication.

    texts = heldout_texts(tokenizer)                         # what is read, as token ids
    reference = prepare_reference(checkpoint, tokenizer)     # once a build; write_reference keeps it
    result = run_gate(reference, onnx_path, target, recipe)  # for every graph; GateError when it fails
    tensors_sha256(onnx_path)                                # what went into an engine, as one hash

The graph that runs here is the very file that the engine is made from.
"""

from hermes_deploy.verification.gate import compare, run_gate
from hermes_deploy.verification.judgement import over_threshold
from hermes_deploy.verification.measures import Measures
from hermes_deploy.verification.reference import (
    POSITIONS,
    Reference,
    Texts,
    heldout_chats,
    heldout_texts,
    prepare_reference,
    reference_key,
    reference_of,
)
from hermes_deploy.verification.reference_file import read_reference, write_reference
from hermes_deploy.verification.report import REPORT, write_report
from hermes_deploy.verification.result import GateResult
from hermes_deploy.verification.tensor_error import TensorError, tensor_error
from hermes_deploy.verification.tensors import tensors_sha256

__all__ = [
    "POSITIONS",
    "REPORT",
    "GateResult",
    "Measures",
    "Reference",
    "TensorError",
    "Texts",
    "compare",
    "heldout_chats",
    "heldout_texts",
    "over_threshold",
    "prepare_reference",
    "read_reference",
    "reference_key",
    "reference_of",
    "run_gate",
    "tensor_error",
    "tensors_sha256",
    "write_reference",
    "write_report",
]
