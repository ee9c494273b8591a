"""One Mistral decoder as ONNX, by construction, in two dialects.

    spec = GraphSpec(config, "portable", "fp16", max_context=2048)
    save_model(build_decoder(spec, checkpoint.tensors), folder / "model.onnx")

`save_fused` writes the same graph once more for the operators of `kernels`. All of it is pure but `saving`, which
writes files. Inputs and outputs of the graphs: `graphs.spec`.
"""

from hermes_deploy.graphs.decoder import build_decoder
from hermes_deploy.graphs.saving import save_fused, save_model
from hermes_deploy.graphs.spec import ATTENTION_SCALES, ATTRIBUTE_LINEAR, GraphSpec, cache_names, linear_names

__all__ = [
    "ATTENTION_SCALES",
    "ATTRIBUTE_LINEAR",
    "GraphSpec",
    "build_decoder",
    "cache_names",
    "linear_names",
    "save_fused",
    "save_model",
]
