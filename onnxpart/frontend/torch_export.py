"""What PyTorch's own exporters do to a network that is to be trained: found, and undone where the file proves it.

Both exporters fold batch norms into convolutions and drop dropouts in evaluation mode, make one initializer of
parameters that happen to be equal (all norms of a fresh network), and several of one parameter that is read in two
layouts (a tied embedding). The newer one leaves on every node which parameters of the module it was made of.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto

from onnxpart.ir.protos import unused
from onnxpart.ir.trainable import FLOATS
from onnxpart.storage.outputs import is_mark

_SOURCE, _SCOPES, _RULE = "pkg.torch.onnx.fx_node", "pkg.torch.onnx.name_scopes", "pkg.onnxscript.rewriter.rule_name"
"""Metadata of nodes: the call that a node was made of, the modules around it, the rewriter's rules that changed it."""
_PARAMETER = re.compile(r"%p_(\w+)")
_RENAMED = re.compile(r"onnx::Conv_\d+")
"""What torch's older exporter calls a weight that it computed itself."""
FOR_TRAINING = "export it for training with onnxpart.torch.export(module, example_inputs, path)"


@dataclass(frozen=True)
class _Use:
    """A node's input that is an initializer, and the module's parameter that it stands for, as the call names it."""

    node: NodeProto
    index: int
    parameter: str

    @property
    def initializer(self) -> str:
        """Name of the initializer."""
        return str(self.node.input[self.index])


def untie(proto: ModelProto) -> list[str]:
    """Give every parameter that the file proves to be one of its own an initializer of its own, in place.

    :param proto: a model as it was read; where no exporter has left its traces nothing changes.
    :returns: names of the new initializers: those of the module's parameters, where the traces tell them.
    """
    if proto.producer_name != "pytorch":
        return []
    known = {tensor.name: tensor for tensor in proto.graph.initializer}
    taken = known.keys() | {name for node in proto.graph.node for name in (*node.input, *node.output)}
    uses, made = defaultdict[str, list[_Use]](list), dict[tuple[str, str], str]()
    for use in _uses(proto):
        uses[use.initializer].append(use)
    for name, found in uses.items():
        parameters = list(dict.fromkeys(use.parameter for use in found))
        if len(parameters) < 2 or len(found) < sum(name in node.input for node in proto.graph.node):
            continue
        first = next((p for p in parameters if p == _mangled(name)), parameters[0])
        for use in found:
            if use.parameter == first:
                continue
            key = name, use.parameter
            if key not in made:
                made[key] = unused(_dotted(use), taken)
                proto.graph.initializer.add().CopyFrom(known[name])
                proto.graph.initializer[-1].name = made[key]
            use.node.input[use.index] = made[key]
    return list(made.values())


def advice(proto: ModelProto) -> list[str]:
    """Sentences on what an exporter did to a network that can't be undone; none for other models."""
    found = []
    folded = folded_norms(proto)
    if folded:
        found.append(
            "batch norms were folded into convolutions when the model was exported, and dropouts left out, so it "
            f"trains without them ({_some(folded)}); {FOR_TRAINING}"
        )
    if any(is_mark(p.key) for p in proto.metadata_props):
        return found  # what is duplicated is so on purpose
    equal = [name for name, copies in _copies(proto).items() if copies]
    if equal:
        found.append(
            f"the export made one parameter of several that were equal or tied ({_some(equal)}), so they train as one; "
            f"{FOR_TRAINING}"
        )
    doubled = _doubled(proto)
    if doubled:
        found.append(
            f"the export made several parameters of one that is tied ({_some(doubled)}), so they train apart; "
            f"{FOR_TRAINING}"
        )
    return found


def folded_norms(proto: ModelProto) -> list[str]:
    """The convolutions into which PyTorch's exporters have folded a batch norm, as they do in evaluation mode.

    The newer exporter names the rule that did it, or gives a convolution that had none a bias that is called after its
    weight; the older one makes new names for both the weight and the bias. Other models aren't judged.
    """
    nodes = proto.graph.node
    if proto.producer_name != "pytorch":
        return []
    told = [node.name for node in nodes if "FuseBatchNormInto" in _trace(node, _RULE)]
    if told or any(node.op_type == "BatchNormalization" for node in nodes):
        return told
    convolutions = [node for node in nodes if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 2]
    return [node.name for node in convolutions if _is_folded(node.input[1], node.input[2])]


def _is_folded(weight: str, bias: str) -> bool:
    return bias == f"{weight}_bias" or bool(_RENAMED.fullmatch(weight) and _RENAMED.fullmatch(bias))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _trace(node: NodeProto, key: str) -> str:
    return next((str(p.value) for p in node.metadata_props if p.key == key), "")


def _is_weight(tensor: TensorProto) -> bool:
    return tensor.data_type in FLOATS and any(size > 1 for size in tensor.dims)


def _uses(proto: ModelProto) -> Iterator[_Use]:
    """The uses of initializers of which the traces tell the parameter.

    A call of the module may have become several nodes; their weights are its parameters, in order. Where these aren't
    as many, nothing is told.
    """
    weights = {tensor.name for tensor in proto.graph.initializer if _is_weight(tensor)}
    calls = defaultdict[str, list[tuple[NodeProto, int]]](list)
    for node in proto.graph.node:
        source = _trace(node, _SOURCE)
        if source:
            calls[source] += [(node, i) for i, name in enumerate(node.input) if name in weights]
    for source, places in calls.items():
        parameters = _PARAMETER.findall(source)
        if len(parameters) == len(places):
            for (node, index), parameter in zip(places, parameters, strict=True):
                yield _Use(node, index, parameter)


def _mangled(name: str) -> str:
    """How a call names the parameter of a name."""
    return re.sub(r"\W", "_", name)


def _dotted(use: _Use) -> str:
    """The name of a use's parameter in its module, by the modules around the node."""
    try:
        scopes = [str(scope) for scope in ast.literal_eval(_trace(use.node, _SCOPES))]
    except (ValueError, SyntaxError, TypeError):
        scopes = []
    for scope in sorted(scopes, key=len, reverse=True):
        prefix = _mangled(scope) + "_"
        if scope and use.parameter.startswith(prefix):
            return f"{scope}.{use.parameter.removeprefix(prefix)}"
    return use.parameter


def _copies(proto: ModelProto) -> dict[str, list[str]]:
    """Weights that the older exporter feeds on under other names, which were those of parameters of their own."""
    weights = {tensor.name for tensor in proto.graph.initializer if _is_weight(tensor)}
    found = defaultdict[str, list[str]](list)
    if proto.producer_name == "pytorch":
        for node in proto.graph.node:
            if node.op_type == "Identity" and node.input[0] in weights and node.name.startswith("Identity_"):
                found[node.input[0]].append(node.output[0])
    return found


def _doubled(proto: ModelProto) -> list[str]:
    """Weights that are one parameter of the module with others."""
    by_parameter = defaultdict[str, list[str]](list)
    for use in _uses(proto):
        if use.initializer not in by_parameter[use.parameter]:
            by_parameter[use.parameter].append(use.initializer)
    return [" = ".join(names) for names in by_parameter.values() if len(names) > 1]
