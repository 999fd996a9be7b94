"""ONNX into a trainable torch module: one pass over the nodes, each entered in a graph of torch.fx."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from onnx import inliner
from torch import fx, nn

from onnxpart.errors import OnnxpartError
from onnxpart.torch import trainable
from onnxpart.torch.integers import Integers, fold
from onnxpart.torch.module import ImportedModule, renamed_statistic
from onnxpart.torch.operators import runtime
from onnxpart.torch.operators.registry import Constant, Handler, Info, Node, Value, find, normal_domain
from onnxpart.torch.store import escape, to_tensor

_SMALL = 1024


def import_onnx(model: onnx.ModelProto | str | Path) -> ImportedModule:
    """Turn a model into a module that computes the same, can be trained, and knows its initializers' names.

    The module takes the graph's inputs by position and returns a tensor, or a tuple for several outputs.
    It is in training mode, as torch modules are at first; call `eval()` for inference. Float initializers
    that are weights are parameters, one each however often it is used; batch-norm statistics and other
    constants are buffers. Batch norm and dropout act in training whatever the file says, with its momentum.

    :raises OnnxpartError: for an operator without an entry in the table, or a form that torch can't do.
    """
    proto = model if isinstance(model, onnx.ModelProto) else _read(Path(model))
    proto = _inlined(proto)
    initializers = {tensor.name for tensor in proto.graph.initializer}
    builder = _Builder(proto)
    for value in proto.graph.input:
        if value.name not in initializers:
            builder.add_input(value.name)
    for node in proto.graph.node:
        builder.add_node(node)
    return builder.finish([value.name for value in proto.graph.output], frozenset(initializers))


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except OSError as error:
        raise OnnxpartError(f"{path} can't be read ({error.strerror}); check the path.") from None


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Replace local functions, and composite operators without an entry, by what they consist of."""
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    opsets = _opsets(proto)
    missing = {(node.domain, node.op_type) for node in proto.graph.node if not _handler(node, opsets)}
    composite = [key for key in missing if _is_composite(*key, opsets)]
    if not composite:
        return proto
    proto = _with_defaults(proto, composite, opsets)
    try:
        inlined = inliner.inline_selected_functions(proto, composite, inline_schema_functions=True)
    except RuntimeError:  # a body that depends on types which aren't known: the node is refused later
        return proto
    return _inlined(inlined) if len(inlined.graph.node) > len(proto.graph.node) else inlined


def _with_defaults(
    proto: onnx.ModelProto, composite: list[tuple[str, str]], opsets: Mapping[str, int]
) -> onnx.ModelProto:
    """Write out the default attributes of composite operators; the inliner would leave them out."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for node in result.graph.node:
        if (node.domain, node.op_type) in composite:
            domain = normal_domain(node.domain)
            schema = onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
            given = {attribute.name for attribute in node.attribute}
            defaults = (schema.attributes[name].default_value for name in schema.attributes if name not in given)
            node.attribute.extend(default for default in defaults if default.name)
    return result


def _is_composite(domain: str, op_type: str, opsets: Mapping[str, int]) -> bool:
    domain = normal_domain(domain)
    try:
        schema = onnx.defs.get_schema(op_type, opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return False
    return any(getattr(schema, f"has_{kind}", False) for kind in ("function", "context_dependent_function"))


def _opsets(proto: onnx.ModelProto) -> dict[str, int]:
    return {normal_domain(entry.domain): entry.version for entry in proto.opset_import}


def _handler(node: onnx.NodeProto, opsets: Mapping[str, int]) -> Handler | None:
    domain = normal_domain(node.domain)
    return find(domain, node.op_type, opsets.get(domain, 1))


def _infer(proto: onnx.ModelProto) -> dict[str, Info]:
    """Infer shapes and types without the bytes of the weights, which would be copied a few times."""
    graph, light = proto.graph, onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    light.graph.node.extend(graph.node)
    light.graph.value_info.extend(graph.value_info)
    light.graph.output.extend(graph.output)
    light.graph.input.extend(graph.input)
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in listed:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            light.graph.input.append(info)
        if tensor.ByteSize() <= _SMALL:
            light.graph.initializer.append(tensor)
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: _info(value.type.tensor_type) for value in values}


def _info(tensor: onnx.TypeProto.Tensor) -> Info:
    if not tensor.HasField("shape"):
        return Info(None, tensor.elem_type)
    dims = tensor.shape.dim
    return Info(tuple(d.dim_value if d.HasField("dim_value") else None for d in dims), tensor.elem_type)


class _Builder:
    """The torch.fx graph under construction, its values by name, and the store of its tensors."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.opsets, self.infos = _opsets(proto), _infer(proto)
        self.trainable = trainable.trainable(proto.graph)
        self.statistics = trainable.statistics(proto.graph)
        self.graph = fx.Graph()
        self.tracer = fx.proxy.GraphAppendingTracer(self.graph)
        self.root = nn.Module()
        self.store = self.root.tensors = nn.Module()
        self.values: dict[str, Value] = {}
        self.inputs: list[torch.Tensor] = []
        self.renamed: dict[tuple[str, int], str] = {}
        self._proxies: dict[str, torch.Tensor] = {}
        for tensor in proto.graph.initializer:
            self.values[tensor.name] = Constant(tensor.name, onnx.numpy_helper.to_array(tensor))

    def add_input(self, name: str) -> None:
        """Add the next input of the graph."""
        self.inputs.append(self._proxy(self.graph.placeholder(f"input_{len(self.inputs)}")))
        self.values[name] = self.inputs[-1]

    def add_node(self, proto: onnx.NodeProto) -> None:
        """Add a node, after the nodes that its inputs come from."""
        inputs = [self._value(name, proto) if name else None for name in proto.input]
        infos = [self.infos.get(name, Info()) for name in proto.input]
        domain = normal_domain(proto.domain)
        node = Node(proto, self.opsets.get(domain, 1), inputs, infos, self)
        result: Value | tuple[Value, ...] | None = fold(node)
        if result is None:
            handler = find(domain, node.op_type, node.opset)
            if handler is None:
                raise node.error(
                    f"the importer has no entry for it (domain {domain or 'ai.onnx'}, opset {node.opset}); "
                    "express it by others, or add a function with @operator in onnxpart/torch/operators"
                )
            try:
                result = handler(node)
            except fx.proxy.TraceError:
                raise node.error("it depends on unknown sizes; fix them in the model's inputs") from None
        self.values.update(zip(proto.output, result if isinstance(result, tuple) else (result,), strict=False))

    def finish(self, outputs: list[str], initializers: frozenset[str]) -> ImportedModule:
        """Close the graph with its outputs, and return the module."""
        results = [cast(fx.Proxy, self.tensor(self._value(name, None))).node for name in outputs]
        self.graph.output(results[0] if len(results) == 1 else tuple(results))
        self.graph.lint()
        body = fx.GraphModule(self.root, self.graph)
        body.graph.eliminate_dead_code()
        return ImportedModule(fx.GraphModule(self.root, body.graph), initializers, self.renamed)

    def emit(
        self, function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> torch.Tensor:
        """Enter a call of a function."""
        return self._create("call_function", function, args, kwargs)

    def module(self, module: nn.Module, args: tuple[object, ...]) -> torch.Tensor:
        """Enter a call of a module, and keep the module."""
        name = f"{type(module).__name__.lower()}_{len(list(self.root.children()))}"
        self.root.add_module(name, module)
        return self._create("call_module", name, args, {})

    def tensor(self, value: Value) -> torch.Tensor:
        """Return the proxy of a value; a constant enters the store when it is first needed."""
        if isinstance(value, Constant):
            return self._stored(value.name, value)
        if isinstance(value, Integers):
            return self.emit(runtime.int_tensor, (self.anchor(), value.items, value.scalar), {})
        return value

    def statistic(self, node: Node, index: int) -> torch.Tensor:
        """Return a batch-norm statistic as a buffer; cloned where the value is also used for something else.

        Exporters that drop equal tensors make one initializer of, say, a scale and a variance of ones.
        """
        value = node.inputs[index]
        if not isinstance(value, Constant):
            raise node.error(f"input {index} must be an initializer; fold the model's constants before importing")
        if value.name in self.statistics:
            return self.tensor(value)
        name = renamed_statistic(value.name, node.outputs[0], index)
        self.renamed[node.outputs[0], index] = name
        return self._stored(name, value)

    def anchor(self) -> torch.Tensor:
        """Return an input of the graph, which tells the device."""
        if not self.inputs:
            raise OnnxpartError("the model has no inputs, so there is nothing to feed it; check the export.")
        return self.inputs[0]

    def _stored(self, name: str, constant: Constant) -> torch.Tensor:
        if name not in self._proxies:
            tensor, key = to_tensor(constant.array), escape(name)
            if name in self.trainable:
                self.store.register_parameter(key, nn.Parameter(tensor))
            else:
                self.store.register_buffer(key, tensor)
            self._proxies[name] = self._proxy(self.graph.get_attr(f"tensors.{key}"))
        return self._proxies[name]

    def _create(
        self,
        kind: str,
        target: Callable[..., object] | str,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> torch.Tensor:
        proxy = self.tracer.create_proxy(kind, target, cast(tuple[Any, ...], args), dict(kwargs))
        return cast(torch.Tensor, proxy)

    def _proxy(self, node: fx.Node) -> torch.Tensor:
        return cast(torch.Tensor, fx.Proxy(node, self.tracer))

    def _value(self, name: str, consumer: onnx.NodeProto | None) -> Value:
        if name not in self.values:
            reader = f"node {consumer.name or consumer.output[0]!r} ({consumer.op_type})" if consumer else "graph"
            reason = f"{reader}: {name!r} is a result that the importer doesn't give"
            raise OnnxpartError(f"{reason}; remove that use from the model.")
        return self.values[name]
