"""What each target can take. A new target is one record here.

A target is where the artifact will run: a name on the command line (`--target sm89`), the
dialect of graph that its engine wants, the dtype of activations, and the precisions that become
real low-precision kernels there (measured from TensorRT's layer record and ONNX Runtime's
optimized graph, see docs/tensorrt.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hermes_deploy.errors import TargetError

Engine = Literal["onnxruntime", "tensorrt"]
Dialect = Literal["ort", "portable"]
Activation = Literal["fp32", "fp16"]
Cache = Literal["fp32", "fp16", "int8"]
Precision = Literal["fp32", "fp16", "int4", "int8", "fp8", "w4a8", "nvfp4"]
Flavour = Literal["tensorrt_rtx", "tensorrt"]


@dataclass(frozen=True)
class Target:
    """`block_sizes`: INT4 block sizes along K, in order of preference; the first that divides is used.

    `flavours`: TensorRT packages that can build for this target, in order of preference; empty for
    ONNX Runtime. `needs_gpu`: the build itself must run on such a GPU. `no_int8_cache`: why it cannot
    keep keys and values in 8 bits, in words; None when it can.
    """

    name: str
    title: str
    engine: Engine
    dialect: Dialect
    activation: Activation
    precisions: tuple[Precision, ...]
    block_sizes: tuple[int, ...]
    compute_capability: tuple[int, int] | None = None
    flavours: tuple[Flavour, ...] = ()
    needs_gpu: bool = False
    no_int8_cache: str | None = None

    @property
    def caches(self) -> tuple[Cache, ...]:
        """What keys and values may be kept in."""
        return (self.activation,) if self.no_int8_cache else (self.activation, "int8")

    @property
    def heads(self) -> tuple[Literal["fp32", "fp16", "int4", "int8"], ...]:
        """What the output head may be stored in; "int8" is weights alone, in blocks."""
        blocks: tuple[Literal["int4", "int8"], ...] = ("int4", "int8") if self.engine == "onnxruntime" else ("int4",)
        return (self.activation, *blocks)


_EVERY_GPU: tuple[Precision, ...] = ("fp16", "int4", "int8")


def _tensorrt(
    name: str, title: str, capability: tuple[int, int], precisions: tuple[Precision, ...], *, rtx: bool = True
) -> Target:
    return Target(
        name=name,
        title=title,
        engine="tensorrt",
        dialect="portable",
        activation="fp16",
        precisions=precisions,
        block_sizes=(128, 64, 32),
        compute_capability=capability,
        flavours=("tensorrt_rtx", "tensorrt") if rtx else ("tensorrt",),
        needs_gpu=not rtx,
        no_int8_cache="TensorRT's KVCacheUpdate takes no cache in 8 bits",
    )


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="cpu",
            title="CPU through ONNX Runtime",
            engine="onnxruntime",
            dialect="ort",
            activation="fp32",
            precisions=("fp32", "int4", "int8"),
            block_sizes=(32, 64, 128),
        ),
        Target(
            name="cuda",
            title="NVIDIA GPU through ONNX Runtime's CUDA provider",
            engine="onnxruntime",
            dialect="ort",
            activation="fp16",
            precisions=("fp16", "int4"),
            block_sizes=(32, 64, 128),
            no_int8_cache="the gate runs on a CPU, whose kernel for 8 bits is another one, and no GPU has run it",
        ),
        _tensorrt("sm80", "A100, A30", (8, 0), _EVERY_GPU),
        _tensorrt("sm86", "A10, A40, RTX 30 series", (8, 6), _EVERY_GPU),
        _tensorrt("sm89", "L4, L40S, RTX 40 series", (8, 9), (*_EVERY_GPU, "fp8")),
        _tensorrt("sm90", "H100, H200, GH200", (9, 0), (*_EVERY_GPU, "fp8"), rtx=False),
        _tensorrt("sm120", "RTX 50 series, RTX PRO Blackwell", (12, 0), (*_EVERY_GPU, "fp8", "nvfp4")),
    )
}


def target(name: str) -> Target:
    """The record of that name. Raises TargetError that lists the valid names."""
    try:
        return TARGETS[name]
    except KeyError:
        raise TargetError(f"unknown target {name!r}; targets are: {', '.join(TARGETS)}") from None
