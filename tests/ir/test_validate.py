"""What isn't valid is found, and the sentence names it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from onnx import GraphProto, TensorProto, helper, numpy_helper

import onnxpart
from models import GOLDEN
from onnxpart.frontend.passes import PASSES
from onnxpart.ir.model import Model
from onnxpart.ir.validate import InvalidModel, validate


def _swapped(graph: GraphProto) -> None:
    nodes = [graph.node[1], graph.node[0], *graph.node[2:]]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _twice(graph: GraphProto) -> None:
    graph.node.append(graph.node[-1])


def _constant(graph: GraphProto) -> None:
    value = numpy_helper.from_array(numpy_helper.to_array(graph.initializer[0]), "c")
    graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=value))


def _input(graph: GraphProto) -> None:
    tensor = graph.initializer[0]
    graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))


def _statistic(graph: GraphProto) -> None:
    norm = next(node for node in graph.node if node.op_type == "BatchNormalization")
    norm.input[3] = norm.input[2]


def _inner_initializer(graph: GraphProto) -> None:
    scan = next(node for node in graph.node if node.op_type == "Scan")
    body = next(a.g for a in scan.attribute if a.name == "body")
    body.initializer.append(numpy_helper.from_array(numpy_helper.to_array(graph.initializer[0]), "inner"))


@pytest.mark.parametrize(("name", "spoil", "sentence"), [
    ("chain", _swapped, "before it is made"),
    ("chain", _twice, "made twice"),
    ("chain", _constant, "Constant 'c' is left"),
    ("chain", _input, "is an input and an initializer"),
    ("batchnorm", _statistic, "statistic and something else"),
    ("scan", _inner_initializer, "'inner' is inside"),
])  # fmt: skip
def test_what_is_wrong_is_named(name: str, spoil: Callable[[GraphProto], None], sentence: str) -> None:
    model = onnxpart.load(GOLDEN[name]())
    validate(model, [step.holds for step in PASSES])
    spoil(model.proto.graph)
    with pytest.raises(InvalidModel, match=sentence):
        validate(Model(model.proto, "spoilt"), [step.holds for step in PASSES if not step.simplifies])
