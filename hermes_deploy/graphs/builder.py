"""Emits nodes and initializers into one list, in order. The only file that makes onnx_ir nodes. Pure.

Every node and value has a name that says what it is (`layers.0.attention.query`), so that two
builds give the same bytes and engine logs can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from hermes_deploy.checkpoints.checkpoint import LazyTensor
from hermes_deploy.errors import GraphError
from hermes_deploy.graphs.spec import ATTRIBUTE_LINEAR, GraphSpec
from hermes_deploy.graphs.weights import ONNX_DTYPES, Source, linear_weight, plain_weight

MICROSOFT = "com.microsoft"


class GraphBuilder:
    """Collects what components emit. `spec` and `source` are what every component needs to read."""

    def __init__(
        self,
        spec: GraphSpec,
        tensors: Mapping[str, LazyTensor],
        cache_scales: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        self.spec = spec
        self.config = spec.config
        self.source = Source(tensors)
        self._cache_scales = cache_scales or {}
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.initializers: dict[str, ir.Value] = {}

    @property
    def portable(self) -> bool:
        return self.spec.dialect == "portable"

    @property
    def dtype(self) -> ir.DataType:
        """dtype of activations and plain weights."""
        return ONNX_DTYPES[self.spec.activation]

    @property
    def cache_dtype(self) -> ir.DataType:
        return ONNX_DTYPES[self.spec.cache]

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        value.name = name
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        self.outputs.append(value)

    def op(self, op_type: str, name: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """One node with one output, both called `name`."""
        return self.op_outputs(op_type, name, (name,), *inputs, domain=domain, **attributes)[0]

    def op_outputs(
        self,
        op_type: str,
        name: str,
        outputs: Sequence[str],
        *inputs: ir.Value | None,
        domain: str = "",
        metadata: Mapping[str, str] | None = None,
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """One node with named outputs; an output called "" is left out."""
        node = ir.node(
            op_type,
            inputs,
            attributes,
            domain=domain,
            name=name,
            outputs=[ir.Value(name=output) for output in outputs],
            metadata_props=dict(metadata or {}),
        )
        self.nodes.append(node)
        return node.outputs

    def branch(self, name: str, emit: Callable[[], Sequence[ir.Value]]) -> ir.Graph:
        """What `emit` emits, as a graph without inputs whose outputs are what it gives. It reads values of
        this graph, where its initializers go too."""
        outside, self.nodes = self.nodes, []
        outputs = emit()
        inside, self.nodes = self.nodes, outside
        return ir.Graph([], outputs, nodes=inside, name=name)

    def initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """The graph's initializer of that tensor; a name that is there already is not added twice."""
        name = tensor.name
        if name is None:
            raise ValueError("an initializer needs a name")
        if name not in self.initializers:
            self.initializers[name] = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
            )
        return self.initializers[name]

    def integers(self, name: str, values: Sequence[int]) -> ir.Value:
        return self.initializer(ir.tensor(np.asarray(values, dtype=np.int64), name=name))

    def scalar(self, name: str, value: np.generic) -> ir.Value:
        return self.initializer(ir.tensor(np.asarray(value), name=name))

    def vector(self, name: str, source: str, size: int) -> ir.Value:
        """A one-dimensional weight in the activation dtype."""
        return self.initializer(plain_weight(name, self.source(source, (size,)), self.spec.activation))

    def cache_scale(self, layer: int, kind: str) -> ir.Value:
        """The scales of int8 keys or values, one a channel, as their initializer."""
        name, shape = f"layers.{layer}.{kind}", (self.config.kv_heads, self.config.head_dim)
        scale = self._cache_scales.get(name)
        if scale is None or scale.shape != shape or scale.dtype != np.float32:
            found = "none" if scale is None else f"{scale.dtype} {list(scale.shape)}"
            raise GraphError(
                f"the int8 cache {name} needs float32 scales {list(shape)}; found {found}. They come from calibration: "
                "quantization.prepare with a recipe whose kv is int8."
            )
        shaped = np.ascontiguousarray(scale.reshape(1, shape[0], 1, shape[1]))
        return self.initializer(ir.tensor(shaped, name=f"layers.{layer}.attention.{kind}_scale"))

    def linear(
        self, name: str, x: ir.Value, inputs: int, sources: Sequence[tuple[str, int]], output: str | None = None
    ) -> ir.Value:
        """x `[..., inputs]` times `{name}.weight` `[inputs, sum of outputs]`, in one tagged MatMul.

        `sources` are (Hugging Face name, outputs) of the `[outputs, inputs]` matrices that are joined.
        """
        tensors = [self.source(source, (outputs, inputs)) for source, outputs in sources]
        weight = self.initializer(linear_weight(f"{name}.weight", tensors, self.spec.activation))
        metadata = {ATTRIBUTE_LINEAR: name}
        return self.op_outputs("MatMul", name, (output or name,), x, weight, metadata=metadata)[0]
