"""Builds the networks of the tests: any operator set, any element type, weights that hide nothing."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

OPSET = 17
Array: TypeAlias = NDArray[np.generic]
Attribute: TypeAlias = Any


class Net:
    """Nodes and initializers in the order of the calls; every method returns the name of the result."""

    def __init__(self, *inputs: tuple[str, Sequence[int | str]], opset: int = OPSET, dtype: type = np.float32) -> None:
        self.opset = opset
        self.dtype = np.dtype(dtype)
        elem = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.inputs = [helper.make_tensor_value_info(name, elem, shape) for name, shape in inputs]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.reserved: set[str] = set()

    def name(self, hint: str) -> str:
        """A name not in use."""
        used = {name for node in self.nodes for name in (node.name, *node.output)}
        used |= self.reserved | set(self.initializers)
        result, i = hint, 2
        while result in used:
            result, i = f"{hint}{i}", i + 1
        return result

    def op(self, op_type: str, *inputs: str, name: str = "", domain: str = "", **attributes: Attribute) -> str:
        """A node with one output."""
        return self.ops(op_type, *inputs, count=1, name=name, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: str, count: int, name: str = "", domain: str = "", **attributes: Attribute
    ) -> list[str]:
        """A node with `count` outputs."""
        base = self.name(name or op_type.lower())
        outputs = [base] if count == 1 else [f"{base}.{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=base, domain=domain, **attributes))
        return outputs

    def array(self, hint: str, values: Array) -> str:
        """An initializer."""
        name = self.name(hint)
        self.initializers[name] = numpy_helper.from_array(values, name)
        return name

    def ints(self, *values: int, hint: str = "ints") -> str:
        """An int64 initializer [values]."""
        return self.array(hint, np.asarray(values, np.int64))

    def number(self, value: float) -> str:
        """A scalar of the formula."""
        return self.array("number", np.asarray(value, self.dtype))

    def random(self, hint: str, *shape: int, center: float = 0.0, spread: float = 0.5) -> str:
        """Normal parameters of `shape`, seeded by their name."""
        name = self.name(hint)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return self.array(name, (center + spread * rng.standard_normal(shape)).astype(self.dtype))

    def positive(self, hint: str, *shape: int) -> str:
        """Positive parameters of `shape`."""
        name = self.name(hint)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return self.array(name, rng.uniform(0.5, 1.5, shape).astype(self.dtype))

    def conv(self, x: str, i: int, o: int, *, kernel: int = 1, group: int = 1, name: str = "conv") -> str:
        """A convolution with bias that keeps the size: [N, i, H, W] to [N, o, H, W]."""
        name = self.name(name)
        w = self.random(f"{name}.weight", o, i // group, kernel, kernel, spread=float((2 * group / i) ** 0.5) / kernel)
        b = self.random(f"{name}.bias", o)
        pads = [kernel // 2] * 4
        return self.op("Conv", x, w, b, name=name, group=group, kernel_shape=[kernel, kernel], pads=pads)

    def linear(self, x: str, i: int, o: int, *, name: str = "linear") -> str:
        """A Gemm: [N, i] to [N, o]."""
        name = self.name(name)
        w = self.random(f"{name}.weight", o, i, spread=float((2 / i) ** 0.5))
        return self.op("Gemm", x, w, self.random(f"{name}.bias", o), name=name, transB=1)

    def model(
        self, *outputs: str, shape: Sequence[int | str] | Mapping[str, Sequence[int | str]] | None = None
    ) -> ModelProto:
        """The model; the shapes of its outputs are left to shape inference where `shape` isn't theirs."""
        elem = helper.np_dtype_to_tensor_dtype(self.dtype)
        shapes = shape if isinstance(shape, Mapping) else dict.fromkeys(outputs, shape)
        values = [helper.make_tensor_value_info(name, elem, shapes[name]) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, values, list(self.initializers.values()))
        domains = {"": self.opset, **{node.domain: 1 for node in self.nodes if node.domain}}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8 if self.opset < 19 else 10)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        del model.graph.value_info[:]
        onnx.checker.check_model(model)
        return model
