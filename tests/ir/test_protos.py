"""What is asked of ONNX's protos."""

from __future__ import annotations

import pytest
from onnx import GraphProto, defs, helper

from onnxpart.ir.protos import (
    NESTING,
    all_graphs,
    all_nodes,
    captured,
    graphs_of,
    is_onnx,
    live,
    normal_domain,
    opsets_of,
    unused,
)
from onnxpart.ir.scopes import share_names


def _nested() -> GraphProto:
    """An If whose branch holds a further If; both read what is outside."""
    u, v = map(helper.make_empty_tensor_value_info, "uv")
    inner = helper.make_graph([helper.make_node("Add", ["a", "t"], ["u"])], "inner", [], [u])
    further = helper.make_node("If", ["c"], ["v"], then_branch=inner, else_branch=inner)
    middle = helper.make_graph([helper.make_node("Neg", ["b"], ["t"]), further], "middle", [], [v])
    node = helper.make_node("If", ["c"], ["y"], then_branch=middle, else_branch=middle)
    values = [helper.make_empty_tensor_value_info(name) for name in "abcy"]
    return helper.make_graph([node], "outer", values[:3], values[3:])


def test_graphs_and_nodes_come_the_outer_before_the_inner() -> None:
    graph = _nested()
    assert [g.name for g in all_graphs(graph)] == ["outer", *["middle", "inner", "inner"] * 2]
    assert [node.op_type for node in all_nodes(graph)] == ["If", *["Neg", "If", "Add", "Add"] * 2]


def test_graphs_are_looked_for_where_the_specification_has_some_and_in_all_nodes_of_other_domains() -> None:
    kinds = (defs.OpSchema.AttrType.GRAPH, defs.OpSchema.AttrType.GRAPHS)
    schemas = [s for s in defs.get_all_schemas_with_history() if not s.domain]
    assert {s.name for s in schemas if any(a.type in kinds for a in s.attributes.values())} == NESTING
    node = _nested().node[0]
    assert len(graphs_of(node)) == 2
    node.op_type, node.domain = "Both", "com.example"
    assert len(graphs_of(node)) == 2


def test_a_node_reads_what_graphs_inside_it_capture_and_nothing_of_their_own() -> None:
    assert set(captured(_nested().node[0])) == {"a", "b", "c"}
    assert live(_nested().node, ["y"])[1] == {"a", "b", "c", "y"}
    assert live(_nested().node, ["other"]) == ([], {"other"})


def test_values_of_all_graphs_get_names_of_their_own() -> None:
    graph = _nested()
    share_names(graph)
    made = [name for node in all_nodes(graph) for name in node.output]
    assert len(made) == len(set(made)) == 9


@pytest.mark.parametrize(
    ("domain", "ours"), [("", True), ("ai.onnx", True), ("ai.onnx.ml", False), ("com.other", False)]
)
def test_the_two_names_of_one_domain(domain: str, ours: bool) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], domain=domain)
    assert is_onnx(node) == is_onnx(node, "Relu", "Gelu") == ours
    assert not is_onnx(node, "Gelu")
    assert normal_domain(domain) == ("" if ours else domain)
    model = helper.make_model(_nested(), opset_imports=[helper.make_opsetid(domain, 13)])
    assert opsets_of(model)[""] == (13 if ours else 1)


def test_a_name_that_is_taken_gets_a_number() -> None:
    taken = {"a", "a_1"}
    assert [unused("a", taken), unused("a", taken), unused("b", taken)] == ["a_2", "a_3", "b"]
