"""Where in a graph a loss is taken: at its output, or before an output function that the loss computes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn

from onnxpart.errors import DataError, OnnxpartError, UsageError, reason
from onnxpart.ir.protos import live, opsets_of
from onnxpart.ir.trainable import FLOATS, FROZEN, PADDING
from onnxpart.torch.data.signature import listed
from onnxpart.torch.data.sources import Data, find_function
from onnxpart.torch.training.losses import BinaryCrossEntropy, CrossEntropy, Custom, Loss, MeanSquaredError

FORMS = "cross_entropy, mse, bce or module:function"
_FUNCTIONS: Mapping[str, frozenset[str]] = {
    "cross_entropy": frozenset({"Softmax", "LogSoftmax"}),
    "bce": frozenset({"Sigmoid"}),
    "mse": frozenset(),
}
"""For each loss, the output functions that it computes itself."""
_PROBABILITIES = 1e-3
"""Numbers that add up to 1 within this are probabilities, not logits."""
_NEW_SOFTMAX = 13
"""Before this opset a Softmax went over all axes from its own on."""


@dataclass(frozen=True)
class Objective:
    """A loss by name, the graph's `output` that it is for, and the `value` that is trained.

    `functions`: from the value to the output, as (operator, axis); the loss computes them itself. `flattens`: whether a
    Softmax among them goes over all axes from its own on.
    """

    loss: str
    output: str
    value: str
    functions: tuple[tuple[str, int], ...] = ()
    flattens: bool = False

    @property
    def note(self) -> str:
        """A sentence if the value isn't the output, otherwise empty."""
        if not self.functions:
            return ""
        names = " and ".join(op_type for op_type, _ in self.functions)
        return f"{self.loss} is taken at {self.value!r}, in front of the {names}: there it is exact"

    def cut(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """Return the graph that computes the value and nothing else; names, inputs and what isn't trained stay."""
        graph = proto.graph
        nodes, used = live(graph.node, [self.value])
        result = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
        result.producer_name, result.producer_version = proto.producer_name, proto.producer_version
        result.metadata_props.extend(entry for entry in proto.metadata_props if entry.key in (FROZEN, PADDING))
        result.graph.name = graph.name
        result.graph.node.extend(nodes)
        result.graph.input.extend(graph.input)
        result.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in used)
        result.graph.value_info.extend(value for value in graph.value_info if value.name in used)
        known = [value for value in (*graph.output, *graph.value_info) if value.name == self.value]
        result.graph.output.append(known[0] if known else onnx.ValueInfoProto(name=self.value))
        return result

    def finished(self, value: Tensor) -> Tensor:
        """Return the graph's output from the trained value."""
        for op_type, axis in self.functions:
            value = _CALLS[op_type](value, axis)
        return value

    def bind(
        self, module: nn.Module, data: Data, smoothing: float = 0.0, weights: tuple[float, ...] = ()
    ) -> tuple[Loss, Data]:
        """Return the loss for the module's output, and the data with targets in its form, checked.

        The module is run on samples of the first batch.

        :param smoothing: of labels. :param weights: of classes (see `CrossEntropy`).
        :raises DataError: when it can't compute them, or the targets don't fit its output.
        :raises UsageError: for smoothing or weights that the loss doesn't take.
        """
        if (smoothing or weights) and self.loss != "cross_entropy":
            raise UsageError(
                f"label smoothing and class weights are for cross_entropy, the loss is {self.loss!r}; leave them out."
            )
        inputs, target = next(data.train.epoch(0))
        output = _output(module, inputs)
        loss: Loss
        if self.loss not in _FUNCTIONS:
            return Custom(find_function(self.loss, "loss")), data
        if output.dim() < 1 or len(output) != len(target):
            raise DataError(
                f"the output {self.value!r} is {listed(output.shape)} for {len(target)} samples; the first axis must "
                "be the samples."
            )
        shape = tuple(output.shape)
        if self.loss == "cross_entropy":
            loss = CrossEntropy(self._axis(shape, target), shape, smoothing, weights)
            self._check_logits(output, loss.axis)
        else:
            loss = BinaryCrossEntropy(shape) if self.loss == "bce" else MeanSquaredError(shape)
        data = data.prepared(loss.prepare)
        if isinstance(loss, MeanSquaredError) and data.test is not None:
            loss = MeanSquaredError(shape, _variance(target for _, target in data.test.epoch(0)))
        return loss, data

    def _axis(self, shape: tuple[int, ...], target: Tensor) -> int:
        """Return the axis of the classes: the Softmax's, or behind what the labels have, or the second."""
        rank = len(shape)
        if rank < 2:
            raise DataError(f"the output {self.value!r} is {listed(shape)}; cross_entropy needs an axis of classes.")
        if not self.functions:
            return rank - 1 if tuple(target.shape[1:]) == shape[1:-1] else 1
        axis = self.functions[0][1] % rank
        if self.flattens and any(n > 1 for n in shape[axis + 1 :]):
            raise UsageError(
                f"the Softmax in front of {self.output!r} goes over several axes, as before opset {_NEW_SOFTMAX}; "
                "convert the model with onnx.version_converter first."
            )
        return axis

    def _check_logits(self, output: Tensor, axis: int) -> None:
        """Refuse the output of a Softmax of an unknown form; as logits it would train badly."""
        sums = output.double().sum(axis)
        if output.shape[axis] > 1 and output.min() >= 0 and bool(((sums - 1).abs() < _PROBABILITIES).all()):
            raise UsageError(
                f"the output {self.value!r} holds probabilities, and cross_entropy takes logits; name those as the "
                "output (--outputs of split and fit, onnxpart.cut in Python)."
            )


_CALLS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "Softmax": torch.softmax,
    "LogSoftmax": torch.log_softmax,
    "Log": lambda value, _: value.log(),
    "Sigmoid": lambda value, _: value.sigmoid(),
}


def find_objective(loss: str, proto: onnx.ModelProto) -> Objective:
    """Return where in a graph a loss is taken.

    :param loss: one of `FORMS`.
    :raises UsageError: for another text, or when several outputs could be meant.
    """
    if loss not in _FUNCTIONS and ":" not in loss:
        raise UsageError(f"the loss {loss!r} isn't known; give {FORMS}.")
    graph = proto.graph
    outputs = [value.name for value in graph.output if value.type.tensor_type.elem_type in FLOATS]
    producer = {name: node for node in graph.node for name in node.output}
    opset = opsets_of(proto)[""]
    found = {o.value: o for o in (_traced(loss, name, producer, opset) for name in outputs)}
    for objective in (_traced(loss, name, producer, opset) for name in outputs):
        if objective.functions:  # an output that is the value itself says less
            found[objective.value] = objective
    if len(found) != 1:
        listing = ", ".join(map(repr, outputs)) or "none of floats"
        raise UsageError(
            f"the network's outputs are {listing}, and one is trained; cut it down to that one (--outputs of split and "
            "fit, onnxpart.cut in Python)."
        )
    return next(iter(found.values()))


def _traced(loss: str, output: str, producer: Mapping[str, onnx.NodeProto], opset: int) -> Objective:
    """Return the objective for one output: the value before the functions that lead to it."""
    functions: list[tuple[str, int]] = []
    wanted, name, node = _FUNCTIONS.get(loss, frozenset()), output, producer.get(output)
    while node is not None and node.op_type in {"Identity", "Log", *wanted}:
        if node.op_type == "Log" and loss != "cross_entropy":
            break
        if node.op_type != "Identity":
            functions.insert(0, (node.op_type, _softmax_axis(node, opset)))
        name = node.input[0]
        if node.op_type in wanted:
            return Objective(loss, output, name, tuple(functions), opset < _NEW_SOFTMAX)
        node = producer.get(name)
    return Objective(loss, output, output)


def _softmax_axis(node: onnx.NodeProto, opset: int) -> int:
    default = -1 if opset >= _NEW_SOFTMAX else 1
    return next((a.i for a in node.attribute if a.name == "axis"), default)


@torch.no_grad()
def _output(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the module's output in evaluation mode; the module is left as it was."""
    training = module.training
    try:
        result = module.eval()(*inputs)
    except (OnnxpartError, RuntimeError, ValueError, IndexError, TypeError) as error:
        raise DataError(
            f"the network can't compute the first batch ({reason(error)}); check the data's shapes."
        ) from None
    finally:
        module.train(training)
    assert isinstance(result, Tensor)
    return result


def _variance(targets: Iterable[Tensor]) -> float:
    """Return the mean square of targets around the mean of each element of a sample."""
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for target in targets:
        wide = target.double()
        count, total, squares = count + len(wide), total + wide.sum(0), squares + wide.square().sum(0)
    variance = (squares / count - (total / count).square()).mean()
    return float(variance) if variance > 1e-12 * squares.mean() / count else 0.0
