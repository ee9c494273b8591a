"""INT4, INT8, FP8 and their mixtures: passes over graphs with lazy weights.

    preparation = prepare(config, tensors, sequences, recipe, target)   # where the recipe has calibration chats
    model = build_decoder(spec, preparation.tensors(config, tensors))
    report = quantize(model, recipe, target, preparation)               # rewrites the graph, reads no weight
    graphs.save_model(model, path)                                      # here the weights are quantized

`recipes.check_target` refuses a recipe that a target cannot take, `plan_block_size` a graph that cannot
be cut into blocks, both before any work.
"""

from hermes_deploy.quantization.calibration import ActivationRanges, calibrate, prepare
from hermes_deploy.quantization.calibration_chats import (
    Chat,
    EncodesChats,
    calibration_chats,
    chats_sha256,
    encode_chats,
    parse_chats,
    read_calibration_file,
)
from hermes_deploy.quantization.linears import Linear, choose_block_size, find_linears
from hermes_deploy.quantization.preparation import Preparation
from hermes_deploy.quantization.quantize import QuantizationReport, plan_block_size, quantize
from hermes_deploy.quantization.reference import head_weight, hidden_states

__all__ = [
    "ActivationRanges",
    "Chat",
    "EncodesChats",
    "Linear",
    "Preparation",
    "QuantizationReport",
    "calibrate",
    "calibration_chats",
    "chats_sha256",
    "choose_block_size",
    "encode_chats",
    "find_linears",
    "head_weight",
    "hidden_states",
    "parse_chats",
    "plan_block_size",
    "prepare",
    "quantize",
    "read_calibration_file",
]
