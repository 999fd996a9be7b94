"""Control flow as a flat list, and back."""

from __future__ import annotations

import onnx
import pytest

import onnxpart
from models import GOLDEN
from onnxpart.ir.flatten import ENTER, LEAVE, Role, axes_of, flatten, role_of, state_of
from onnxpart.ir.protos import all_graphs, opsets_of
from onnxpart.ir.unflatten import normal
from tests.networks import looping

FORMS = [(cell, form) for cell in looping.CELLS for form in ("Scan", "Loop")]


@pytest.mark.parametrize(("cell", "form"), FORMS)
def test_back_from_flat_is_where_it_came_from(cell: str, form: str) -> None:
    model = onnxpart.load(looping.recurrent(cell, form))
    again = onnx.ModelProto.FromString(model.proto.SerializeToString())
    normal(again.graph, opsets_of(again)[""])
    assert again.SerializeToString(deterministic=True) == model.proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize(("cell", "form"), FORMS)
def test_every_operator_stands_in_the_list_once(cell: str, form: str) -> None:
    model = onnxpart.load(looping.recurrent(cell, form))
    flat = flatten(model.proto.graph, 17)
    plain = [node.output[0] for node in flat.nodes if node.domain not in (ENTER, LEAVE)]
    inside = [node for graph in all_graphs(model.proto.graph) for node in graph.node if node.op_type != form]
    assert sorted(plain) == sorted(node.output[0] for node in inside)
    assert len(flat.regions) == 1


def test_markers_say_what_they_hand_over() -> None:
    flat = onnxpart.load(looping.recurrent("elman", "Scan")).flat
    (region,) = flat.regions.values()
    assert {role_of(marker) for marker in (*region.enters, *region.leaves)} <= {Role.STATE, Role.EACH}
    states = [marker for marker in region.leaves if role_of(marker) == Role.STATE]
    assert {state_of(marker) for marker in states} <= {name for marker in region.enters for name in marker.output}
    assert all(axes_of(marker) == [0] for marker in region.enters if role_of(marker) == Role.EACH)


def test_both_branches_of_an_if_leave_by_one_marker() -> None:
    flat = onnxpart.load(GOLDEN["branches"]()).flat
    region = next(region for region in flat.regions.values() if region.node.op_type == "If")
    assert [role_of(marker) for marker in region.enters] == [Role.CONDITION]
    assert {role_of(marker) for marker in region.leaves} == {Role.BRANCHES}
