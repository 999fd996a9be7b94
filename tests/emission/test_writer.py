"""Nodes, initializers and names of a graph in the making."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, numpy_helper

from onnxpart import Plan, analyse, load
from onnxpart.analysis.rewrite import Rewrite
from onnxpart.emission.writer import Writer
from onnxpart.ir.model import Model
from onnxpart.planning.plan import METADATA, METADATA_PART
from onnxpart.planning.planner import partition
from tests.networks.net import Net


def model() -> Model:
    n = Net(("x", ("N", 3)))
    h = n.op("Relu", n.linear("x", 3, 4, name="in"), name="act")
    return load(n.model(n.linear(h, 4, 2, name="out"), shape=("N", 2)))


def fresh(source: Model) -> Writer:
    return Writer(source, lambda value, tensor, copy: None)


def test_names_are_handed_out_once() -> None:
    writer = fresh(model())
    assert writer.unique("new") == "new"
    assert writer.unique("new") != "new"
    assert writer.unique("act") != "act"
    assert writer.unique("in.weight") != "in.weight"


def test_a_constant_is_an_integer_initializer() -> None:
    writer = fresh(model())
    name = writer.constant(range(3), "index")
    assert np.asarray(writer.initializers[name]).tolist() == [0, 1, 2]


def test_a_rewrite_puts_nodes_in_front_and_behind() -> None:
    source = model()
    made = partition(analyse(source), 2)
    writer, op = fresh(source), made.analysis.ops[1]
    node = NodeProto()
    node.CopyFrom(op.node)

    def around(r: Rewrite) -> None:
        r.constant([1, 2], "numbers")
        r.node.input[0] = r.add("Neg", [r.node.input[0]], "negated")

    writer.rewritten(op, node, lambda name: made.division.kept(name, 0), around, ((), -1))
    writer.rewritten(op, NodeProto(), lambda name: made.division.kept(name, 0), None, ((), -1))
    assert [n.op_type for n in writer.unflattener.nodes] == ["Neg", "Relu", ""]
    assert any(name.endswith("numbers") for name in writer.initializers)


def test_only_what_is_read_remains_and_the_plan_goes_along() -> None:
    source = model()
    made = partition(analyse(source), 2)
    writer = fresh(source)
    for name in source.initializers:
        writer.hold_slice(made.plan.by_name[name], 1, name)
    writer.constant([1], "unread")
    for op in made.analysis.ops:
        writer.unflattener.append(op.node, ((), -1))
    writer.unflattener.append(NodeProto(op_type="Neg", input=["act"], output=["dead"]), ((), -1))
    found = writer.finish(made.plan, 1).model()
    assert [n.op_type for n in found.graph.node] == ["Gemm", "Relu", "Gemm"]
    assert [t.name for t in found.graph.initializer] == ["in.weight", "in.bias", "out.weight", "out.bias"]
    assert numpy_helper.to_array(found.graph.initializer[0]).shape == (2, 3)
    entries = {p.key: p.value for p in found.metadata_props}
    assert Plan.from_json(entries[METADATA]) == made.plan
    assert entries[METADATA_PART] == "1"
