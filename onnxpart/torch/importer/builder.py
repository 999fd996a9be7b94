"""The graph of torch.fx under construction, one for the model and one for each body of its control flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import fx, nn

from onnxpart.errors import OnnxpartError
from onnxpart.ir.protos import normal_domain, unused
from onnxpart.torch.importer.decompose import branch_of
from onnxpart.torch.importer.fuse import SHAPE, fuse
from onnxpart.torch.importer.graph_module import ORIGIN, Body, Program
from onnxpart.torch.importer.layers import use_layers
from onnxpart.torch.importer.node import Handler, Node
from onnxpart.torch.importer.operators import runtime
from onnxpart.torch.importer.operators.eager import Interpreted, computed
from onnxpart.torch.importer.operators.registry import find
from onnxpart.torch.importer.sizes import fold
from onnxpart.torch.importer.tree import keys, plant
from onnxpart.torch.importer.values import Constant, Info, Integers, Unknown, Value, are_known
from onnxpart.torch.importer.weak_types import follow_types
from onnxpart.torch.tensors import DTYPES, HALVES, to_array, to_tensor

_UNSIGNED = {TensorProto.UINT16: np.uint16, TensorProto.UINT32: np.uint32, TensorProto.UINT64: np.uint64}
"""Types that torch stores but has few operators for: operators get them as int64."""
_TYPELESS = frozenset(
    (
        "BitCast", "ConcatFromSequence", "Identity", "If", "Loop", "Optional", "OptionalGetElement", "Scan",
        "SequenceAt", "SequenceConstruct", "SequenceErase", "SequenceInsert", "Shape", "Size", "SplitToSequence",
    )
)  # fmt: skip
"""Operators that take values of any type as they are."""
_SMALL = 1024
"""Constants of at most this many elements are computed with while importing."""
_NOT_COMPUTED = frozenset(
    (
        "Bernoulli", "Dropout", "Identity", "If", "Loop", "Optional", "OptionalGetElement", "OptionalHasElement",
        "RandomNormalLike", "RandomUniformLike", "Scan", "SequenceConstruct", "SequenceEmpty", "SplitToSequence",
    )
)  # fmt: skip
B = TypeVar("B", bound=Body)


@dataclass
class Scope:
    """What all graphs of a model share.

    `trainable`: the initializers that are parameters. `tensors`: all tensors that a graph reads. `taken`: by its first
    output, which branch an If with a known condition takes.
    """

    opsets: Mapping[str, int]
    infos: Mapping[str, Info]
    trainable: set[str]
    initializers: Mapping[str, Constant]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    taken: dict[str, bool] = field(default_factory=dict)


class Builder:
    """A torch.fx graph, and its values by their ONNX names."""

    def __init__(self, scope: Scope, outer: Builder | None = None) -> None:
        self.scope, self.outer = scope, outer
        self.graph = fx.Graph()
        self.tracer = fx.proxy.GraphAppendingTracer(self.graph)
        self.modules: dict[str, nn.Module] = {}
        self.values: dict[str, Value] = {}
        self.captures: list[torch.Tensor] = []
        self._inputs: list[torch.Tensor] = []
        self._floats: list[fx.Node] = []
        self._stored: dict[str, tuple[Constant, torch.Tensor]] = {}
        self._widened: dict[str, torch.Tensor] = {}
        self._placeholders = 0

    def add_graph(self, graph: onnx.GraphProto) -> None:
        """Add a graph's initializers, its inputs, and its nodes."""
        own = {tensor.name for tensor in graph.initializer}
        self.values |= {name: self.scope.initializers[name] for name in own}
        for value in graph.input:
            if value.name not in own:
                self._inputs.append(self._placeholder())
                self.values[value.name] = self._inputs[-1]
                kind = DTYPES.get(value.type.tensor_type.elem_type)
                if kind is not None and kind.is_floating_point:
                    self._floats.append(cast(fx.Proxy, self._inputs[-1]).node)
                self._set_shape(value.name)
        for node in graph.node:
            self._add_node(node)

    def finish(self, graph: onnx.GraphProto, make: Callable[[], B]) -> B:
        """Close the graph with its outputs, and return its module, with the tensors and modules that it needs."""
        results = [cast(fx.Proxy, self.tensor(self._value(value.name, None))).node for value in graph.output]
        single = self.outer is None and len(results) == 1
        self.graph.output(results[0] if single else tuple(results))
        if self.outer is None:
            fuse(self.graph, self.scope.tensors)
            follow_types(self.graph, self.scope.tensors, self.modules, self._floats)
        self.graph.lint()
        self.graph.eliminate_dead_code(_is_port)
        module = make()
        self._furnish(module)
        module.program = Program(self.graph)
        return module

    def _furnish(self, module: Body) -> None:
        """Put into the module what its graph reads and calls; layers that the graph shows become torch's own."""
        own = {*dir(module), "program"}
        read = keys(_targets(self.graph, "get_attr"), own)
        taken = {key.partition(".")[0] for key in read.values()} | own
        called = {name: unused(name, taken) for name in _targets(self.graph, "call_module")}
        for node in self.graph.nodes:
            node.target = {"get_attr": read, "call_module": called}.get(node.op, {}).get(node.target, node.target)
        plant(module, {key: self.scope.tensors[name] for name, key in read.items()})
        for name, key in called.items():
            module.add_module(key, self.modules[name])
        use_layers(self.graph, module)
        for key in set(called.values()).difference(_targets(self.graph, "call_module")):
            delattr(module, key)
        self.graph.eliminate_dead_code(_is_port)

    def emit(
        self, function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> torch.Tensor:
        """Enter a call of a function."""
        return self._create("call_function", function, args, kwargs)

    def module(self, module: nn.Module, args: tuple[object, ...]) -> torch.Tensor:
        """Enter a call of a module, and keep the module."""
        name = f"{type(module).__name__.lower()}_{len(self.modules)}"
        self.modules[name] = module
        return self._create("call_module", name, args, {})

    def tensor(self, value: Value) -> torch.Tensor:
        """Return the proxy of a value; a constant enters the module when it is first needed."""
        if isinstance(value, Constant):
            return self._constant(value.name, value)
        if isinstance(value, Integers):
            return self.emit(runtime.int_tensor, (self.anchor(), value.items, value.scalar), {})
        return value

    def statistic(self, node: Node, index: int) -> torch.Tensor:
        """Return a batch-norm statistic, which training changes in place."""
        value = node.inputs[index]
        if not isinstance(value, Constant):
            raise node.unknown(f"input {index} is computed at run time")
        return self.tensor(value)

    def anchor(self) -> torch.Tensor:
        """Return an input of the graph, which tells the device."""
        if self._inputs:
            return self._inputs[0]
        if self.outer:
            return self._captured(self.outer.anchor())
        raise OnnxpartError("the model has no inputs, so there is nothing to feed it; check the export.")

    def body(self, graph: onnx.GraphProto) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        """Import a subgraph; return it, and the outer values that it reads, to be passed after its own inputs."""
        inner = Builder(self.scope, self)
        inner.add_graph(graph)
        return inner.finish(graph, Body), tuple(inner.captures)

    def take(self, node: Node, then: bool) -> tuple[Value, ...]:
        """Add the taken branch of an If to this graph; return its outputs."""
        self.scope.taken[node.outputs[0]] = then
        graph = branch_of(node.proto, then)
        self.add_graph(graph)
        return tuple(self._value(value.name, None) for value in graph.output)

    def _add_node(self, proto: onnx.NodeProto) -> None:
        """Enter the calls of a node, and keep its results as values."""
        domain = normal_domain(proto.domain)
        opset = self.scope.opsets.get(domain, 1)
        inputs = [self._value(name, proto) if name else None for name in proto.input]
        infos = [self.scope.infos.get(name, Info()) for name in proto.input]
        results = [self.scope.infos.get(name, Info()) for name in proto.output]
        if proto.op_type not in _TYPELESS:
            self._widen(proto.input, inputs, infos)
        node = Node(proto, opset, inputs, infos, results, self)
        last = next(iter(reversed(self.graph.nodes)), None)
        handler = find(domain, node.op_type, node.opset)
        if handler is None:
            raise node.error(
                f"the importer has no entry for it (domain {domain or 'ai.onnx'}, opset {opset}); "
                "write it with other operators, or add a function with @operator in onnxpart/torch/importer/operators"
            )
        result: Value | tuple[Value, ...] | None = fold(node) or self._computed(node)
        result = self._handled(node, handler) if result is None else result
        self._set_origin(last, node.title)
        pairs = zip(proto.output, result if isinstance(result, tuple) else (result,), strict=False)
        self.values |= {name: self._narrow(name, value, proto.op_type) for name, value in pairs}
        for name in filter(None, proto.output):
            self._set_shape(name)

    def _computed(self, node: Node) -> tuple[Value, ...] | None:
        """Compute a node whose inputs are small constants that training doesn't change; None for other nodes."""
        arrays = [node.constant(index) for index in range(len(node.inputs))]
        known = all(self._is_fixed(value) for value in node.inputs if value is not None)
        if node.domain or not arrays or node.op_type in _NOT_COMPUTED or not known:
            return None
        try:
            inputs = [None if array is None else to_tensor(array) for array in arrays]
            found = computed(node.proto, node.opset, inputs, node.results)
        except (IndexError, NotImplementedError, RuntimeError, ValueError, OnnxpartError):
            return None  # an error shows at run time, or not at all if nobody needs the value
        if any(x.numel() > _SMALL or x.dtype in HALVES for x in found):
            return None
        return tuple(Constant(name, to_array(x)) for name, x in zip(node.outputs, found, strict=False))

    def _is_fixed(self, value: Value) -> bool:
        if isinstance(value, Constant):
            trained = value.name in self.scope.initializers and value.array.dtype.kind not in "iub"
            return value.array.size <= _SMALL and not trained
        return isinstance(value, Integers) and value.known

    def _handled(self, node: Node, handler: Handler) -> Value | tuple[Value, ...]:
        try:
            return handler(node)
        except (Unknown, fx.proxy.TraceError):
            module = Interpreted(node.proto, node.opset, node.results)
            args = tuple(None if value is None else self.tensor(value) for value in node.inputs)
            result = self.module(module, args)
            return tuple(result[i] for i in range(len(node.outputs)))

    def _set_origin(self, last: fx.Node | None, title: str) -> None:
        """Note in the calls that were entered after `last` which node they stand for."""
        for entered in reversed(self.graph.nodes):
            if entered is last:
                return
            entered.meta[ORIGIN] = title

    def _set_shape(self, name: str) -> None:
        """Note a value's shape in the call that computes it."""
        node, shape = getattr(self.values.get(name), "node", None), self.scope.infos.get(name, Info()).shape
        if isinstance(node, fx.Node) and shape is not None:
            node.meta[SHAPE] = shape

    def _widen(self, names: Sequence[str], inputs: list[Value | None], infos: list[Info]) -> None:
        """Replace inputs of unsigned types by int64, once for each value."""
        for i, (name, value) in enumerate(zip(names, inputs, strict=True)):
            if infos[i].dtype not in _UNSIGNED or value is None:
                continue
            infos[i] = Info(infos[i].shape, TensorProto.INT64)
            if isinstance(value, Constant):
                inputs[i] = Constant(value.name, runtime.signed(value.array))
            elif isinstance(value, Integers):
                raise AssertionError(name)  # sizes are int64
            else:
                if name not in self._widened:
                    self._widened[name] = self.emit(runtime.widen, (value,), {})
                inputs[i] = self._widened[name]

    def _narrow(self, name: str, value: Value, op_type: str) -> Value:
        element = self.scope.infos.get(name, Info()).dtype
        if element not in _UNSIGNED or op_type in _TYPELESS or isinstance(value, Constant | Integers):
            return value
        return self.emit(runtime.narrow, (value, DTYPES[element]), {})

    def _constant(self, name: str, constant: Constant) -> torch.Tensor:
        """Return the proxy of a constant; the outermost graph holds it."""
        if name in self._stored and self._stored[name][0] is not constant:
            return self._constant(f"{name}'", constant)  # bodies may give one name to several values
        if name not in self._stored:
            if self.outer:
                proxy = self._captured(self.outer._constant(name, constant))  # noqa: SLF001
            else:
                tensor = to_tensor(constant.array)
                self.scope.tensors[name] = nn.Parameter(tensor) if name in self.scope.trainable else tensor
                proxy = self._proxy(self.graph.get_attr(name))
            self._stored[name] = constant, proxy
        return self._stored[name][1]

    def _create(
        self,
        kind: str,
        target: Callable[..., object] | str,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> torch.Tensor:
        proxy = self.tracer.create_proxy(kind, target, cast(tuple[Any, ...], args), dict(kwargs))
        return cast(torch.Tensor, proxy)

    def _placeholder(self) -> torch.Tensor:
        first = next((node for node in self.graph.nodes if node.op != "placeholder"), None)
        name = f"input_{self._placeholders}"
        self._placeholders += 1
        if first is None:
            return self._proxy(self.graph.placeholder(name))
        with self.graph.inserting_before(first):
            return self._proxy(self.graph.placeholder(name))

    def _captured(self, value: torch.Tensor) -> torch.Tensor:
        """Return a placeholder for an outer value, a tensor or a size."""
        self.captures.append(value)
        return self._placeholder()

    def _proxy(self, node: fx.Node) -> torch.Tensor:
        return cast(torch.Tensor, fx.Proxy(node, self.tracer))

    def _value(self, name: str, consumer: onnx.NodeProto | None) -> Value:
        if name not in self.values:
            if self.outer is None:
                reader = f"node {consumer.name or consumer.output[0]!r} ({consumer.op_type})" if consumer else "graph"
                reason = f"{reader}: {name!r} is an output that the importer doesn't compute"
                raise OnnxpartError(f"{reason}; remove that use from the model.")
            self.values[name] = self._from_outside(self.outer._value(name, consumer))  # noqa: SLF001
        return self.values[name]

    def _from_outside(self, value: Value) -> Value:
        if isinstance(value, Constant):
            return value
        if isinstance(value, Integers):
            items = (item if are_known((item,)) else self._captured(cast(torch.Tensor, item)) for item in value.items)
            return Integers(cast(tuple[int, ...], tuple(items)), value.scalar)
        return self._captured(value)


def _is_port(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output")


def _targets(graph: fx.Graph, kind: str) -> dict[str, None]:
    """The targets of the nodes of a kind, in the order of their first use."""
    return dict.fromkeys(str(node.target) for node in graph.nodes if node.op == kind)
