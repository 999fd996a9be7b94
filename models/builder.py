"""Builds small ONNX models: named nodes, seeded float32 weights, a dynamic batch dimension ``N``."""

import zlib
from collections.abc import Callable
from math import prod
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8

Array: TypeAlias = NDArray[np.generic]
Dimension: TypeAlias = int | str
Attribute: TypeAlias = int | float | str | list[int] | TensorProto | GraphProto


def generator(seed: int, name: str) -> np.random.Generator:
    """Return the random generator of one initializer; it depends on the seed and on the name alone."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def he_normal(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> NDArray[np.float32]:
    """Draw float32 weights of `shape` with variance ``2 / fan_in`` (He et al., 2015)."""
    gain = np.float32(np.sqrt(2.0 / fan_in))
    return rng.standard_normal(shape, dtype=np.float32) * gain


def near(rng: np.random.Generator, shape: tuple[int, ...], center: float, spread: float) -> NDArray[np.float32]:
    """Draw float32 values of `shape`, uniform within `spread` of `center`."""
    return rng.uniform(center - spread, center + spread, shape).astype(np.float32)


def parameter_count(model: ModelProto) -> int:
    """Count the elements of all floating-point initializers, scalars (a dropout's ratio) left out."""
    floating = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)
    return sum(prod(t.dims) for t in model.graph.initializer if t.data_type in floating and t.dims)


class GraphBuilder:
    """Collects nodes and initializers in the order of the calls.

    Values and initializers are known by their names. A node without an explicit output gives its own
    name to its result. A weighted node's initializers are ``<node>.weight`` and ``<node>.bias``.
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self.seed = seed
        self._nodes: list[NodeProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._initializers: dict[str, TensorProto] = {}

    def input(self, name: str, *shape: Dimension) -> str:
        """Add the float32 graph input `name`."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def initializer(self, name: str, array: Array) -> str:
        """Add `array` as it is under `name`."""
        if name in self._initializers:
            raise ValueError(f"{self.name}: the initializer {name!r} exists already")
        self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def integers(self, name: str, values: list[int]) -> str:
        """Add an int64 initializer: a shape, axes, bounds, indices."""
        return self.initializer(name, np.array(values, dtype=np.int64))

    def weight(self, name: str, *shape: int, fan_in: int) -> str:
        """Add He-initialised float32 weights of `shape`."""
        return self.initializer(name, he_normal(generator(self.seed, name), shape, fan_in))

    def values(self, name: str, *shape: int, center: float = 0.0, spread: float = 0.1) -> str:
        """Add a bias, scale or statistic of `shape`, uniform within `spread` of `center`."""
        return self.initializer(name, near(generator(self.seed, name), shape, center, spread))

    def node(self, op_type: str, name: str, *inputs: str, domain: str = "", **attributes: Attribute) -> str:
        """Add a node with one output; return the output's name, which is the node's."""
        return self.node_with_outputs(op_type, name, *inputs, outputs=[name], domain=domain, **attributes)[0]

    def node_with_outputs(
        self,
        op_type: str,
        name: str,
        *inputs: str,
        outputs: list[str],
        domain: str = "",
        **attributes: Attribute,
    ) -> list[str]:
        """Add a node with the given `outputs`; return them."""
        node = helper.make_node(op_type, inputs, outputs, name=name, domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._nodes.append(node)
        return outputs

    def inner(self, name: str, inputs: list[str], build: Callable[[], list[str]]) -> GraphProto:
        """Build a graph for a node's attribute: what `build` adds, and the float32 values that it returns."""
        start = len(self._nodes)
        outputs = build()
        nodes = self._nodes[start:]
        del self._nodes[start:]
        kind = TensorProto.FLOAT
        values = [[helper.make_tensor_value_info(n, kind, None) for n in names] for names in (inputs, outputs)]
        return helper.make_graph(nodes, name, values[0], values[1])

    def constant(self, name: str, array: Array) -> str:
        """Add a Constant node that holds `array`, as exporters write small operands."""
        return self.node("Constant", name, value=numpy_helper.from_array(array, f"{name}.value"))

    def relu(self, name: str, x: str) -> str:
        """Add a Relu."""
        return self.node("Relu", name, x)

    def conv(
        self,
        name: str,
        x: str,
        channels: tuple[int, int],
        kernel: int = 3,
        pad: int | None = None,
        stride: int = 1,
        group: int = 1,
    ) -> str:
        """Add a convolution with a bias: x ``[N, I, H, W]``, weight ``[O, I/group, kernel, kernel]``.

        `channels` is ``(I, O)``; `pad` keeps the size of H and W unless it is given.
        """
        fan_in = channels[0] // group * kernel**2
        weight = self.weight(f"{name}.weight", channels[1], channels[0] // group, kernel, kernel, fan_in=fan_in)
        bias = self.values(f"{name}.bias", channels[1])
        pads = [kernel // 2 if pad is None else pad] * 4
        shape = [kernel, kernel]
        return self.node(
            "Conv", name, x, weight, bias, kernel_shape=shape, pads=pads, strides=[stride] * 2, group=group
        )

    def linear(self, name: str, x: str, units: tuple[int, int]) -> str:
        """Add a Gemm with transB=1: x ``[N, I]``, weight ``[O, I]``, bias ``[O]``; `units` is ``(I, O)``."""
        weight = self.weight(f"{name}.weight", units[1], units[0], fan_in=units[0])
        bias = self.values(f"{name}.bias", units[1])
        return self.node("Gemm", name, x, weight, bias, transB=1)

    def max_pool(self, name: str, x: str, kernel: int, stride: int, ceil_mode: int = 0) -> str:
        """Add a max-pooling without padding."""
        return self.node("MaxPool", name, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, ceil_mode=ceil_mode)

    def pooled(self, name: str, x: str) -> str:
        """Add a global average pooling and flatten it: ``[N, C, H, W]`` to ``[N, C]``."""
        return self.node("Flatten", f"{name}.flat", self.node("GlobalAveragePool", name, x), axis=1)

    def build(self, outputs: dict[str, tuple[Dimension, ...]]) -> ModelProto:
        """Return the model whose graph `outputs` are float32 values of the given shapes.

        The model passes the checker, and every value's shape is inferred and consistent with `outputs`.
        """
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, results, list(self._initializers.values()))
        domains = sorted({node.domain for node in self._nodes} - {""})
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model
