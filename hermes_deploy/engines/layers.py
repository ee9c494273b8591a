"""TensorRT's layer record, read: which kernel does which linear, in which dtype.

With DETAILED verbosity the builder logs one record that starts with `Layers:` and holds one line a
kernel. It is the only account of an engine that needs no GPU. Pure: text in, values out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

RECORD = "Layers:"

_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>.*?)\], "
    r"(?:.*?, )?TacticName: (?P<tactic>[^,]*),.*?Metadata: (?P<metadata>.*)$"
)
_OPERAND = re.compile(r"Dimensions: \[(?P<dimensions>[-\d,]*)\].*?Datatype: (?P<dtype>\w+)")
_ATTENTION = re.compile(r"^_*(?P<kernel>(?:\w*_)?f?mha(?:_v\d+)?)(?:_0x|$)")
_DTYPES = {
    "Half": "fp16",
    "Float": "fp32",
    "BFloat16": "bf16",
    "FP8": "fp8",
    "FP4E2M1": "fp4",
    "Int4": "int4",
    "Int8": "int8",
}
_FORMS = {("int4", "fp8"): "w4a8", ("int8", "int8"): "int8", ("fp8", "fp8"): "fp8", ("fp4", "fp4"): "nvfp4"}


@dataclass(frozen=True)
class Operand:
    """`size`: elements, counting a dynamic dimension as 1."""

    dtype: str
    size: int


@dataclass(frozen=True)
class Kernel:
    """`constants` are weights that the kernel reads; `metadata` names the ONNX nodes that it does."""

    name: str
    kind: str
    tactic: str
    inputs: tuple[Operand, ...]
    constants: tuple[Operand, ...]
    metadata: str


@dataclass(frozen=True)
class Linear:
    """A matrix of the network: `dtype` and `size` (elements) of its weights, and the node that multiplies.

    `activation`: the dtype of codes in which the other operand comes in, "" where it has none.
    `scales`: how many numbers dequantize the weights, 0 where they are not quantized.
    """

    node: str
    dtype: str
    size: int
    activation: str = ""
    scales: int = 0

    @property
    def form(self) -> str:
        """A recipe's word for it ("int4", "fp8", "w4a8"), or both dtypes where there is none."""
        if not self.activation:
            return "int8 weight-only" if self.dtype == "int8" else self.dtype
        return _FORMS.get((self.dtype, self.activation), f"{self.dtype} with {self.activation} activations")


def read_record(text: str) -> list[Kernel]:
    """The kernels of a `Layers:` record, in order."""
    kernels = []
    for line in text.splitlines():
        if not line.startswith("Name: "):
            if line.startswith("I/O Tensors:"):
                break
            continue
        found = _LINE.match(line)
        if found:
            inputs, constants = found["inputs"], found["constants"] or ""
            kernels.append(
                Kernel(
                    found["name"],
                    found["kind"],
                    found["tactic"],
                    _operands(inputs),
                    _operands(constants),
                    found["metadata"],
                )
            )
    return kernels


def gemms(kernels: Sequence[Kernel], linear: Linear) -> list[Kernel]:
    """Kernels that multiply activations with `linear`'s weights, read in their own dtype.

    A kernel that only turns the weights into a wider dtype has no activation among its inputs, and
    the kernel that then multiplies has no such constant: neither counts. Where activations are
    quantized too, only a kernel that reads them in their codes counts.
    """
    return [
        kernel
        for kernel in kernels
        if linear.node in kernel.metadata
        and any(c.dtype == linear.dtype and c.size >= linear.size for c in kernel.constants)
        and any(i.dtype == (linear.activation or i.dtype) for i in kernel.inputs)
    ]


def fused_attention(kernels: Sequence[Kernel]) -> dict[str, int]:
    """Kernels that do a whole attention (scores, softmax and values), by name."""
    found = (_ATTENTION.match(kernel.tactic) for kernel in kernels)
    return dict(sorted(Counter(match["kernel"] for match in found if match).items()))


def _operands(text: str) -> tuple[Operand, ...]:
    return tuple(
        Operand(
            _DTYPES.get(found["dtype"], found["dtype"].lower()),
            math.prod(max(1, int(d)) for d in found["dimensions"].split(",") if d),
        )
        for found in _OPERAND.finditer(text)
    )
