"""A node on its way into a part."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnxpart import PartitionError
from onnxpart.analysis.rewrite import Kept, Rewrite, dims, put, repeats_after, sizes
from tests.networks.alone import Alone
from tests.networks.net import Array


def some(*indices: int) -> Array:
    return np.asarray(indices, np.int64)


def rewrite(alone: Alone, kept: Mapping[str, Kept]) -> Rewrite:
    """A rewrite in which tensors that aren't in `kept` are whole."""
    node = onnx.NodeProto()
    node.CopyFrom(alone.op.node)
    taken: set[str] = set()

    def unique(name: str) -> str:
        result = f"{name}{len(taken)}"
        taken.add(result)
        return result

    def of(name: str) -> Kept:
        return kept.get(name, (None,) * len(alone.op.state.shapes.shape[name]))  # type: ignore[return-value]

    return Rewrite(alone.op, node, of, unique)


def computed(r: Rewrite, name: str, feeds: Mapping[str, Array], nodes: list[onnx.NodeProto] | None = None) -> Array:
    """What the nodes in front give for a name."""
    graph = helper.make_graph(
        r.before if nodes is None else nodes,
        "before",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()],
        [helper.make_empty_tensor_value_info(name)],
        [onnx.numpy_helper.from_array(a, n) for n, a in r.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", r.op.opset)])
    (result,) = ReferenceEvaluator(model).run(None, dict(feeds))
    return np.asarray(result)


INDICES = st.sets(st.integers(0, 7), min_size=1).map(sorted)


@given(INDICES, st.data())
def test_an_input_is_cut_to_the_indices_that_are_wanted(have: list[int], data: st.DataObject) -> None:
    want = sorted(data.draw(st.sets(st.sampled_from(have), min_size=1)))
    r = rewrite(Alone("Relu", [(8, 3)]), {"x0": (some(*have), None)})
    r.narrow(0, (some(*want), None))
    whole = np.arange(24, dtype=np.float32).reshape(8, 3)
    assert bool(r.before) == (want != have)
    if r.before:
        assert computed(r, r.node.input[0], {"x0": whole[have]}).tolist() == whole[want].tolist()
    assert {n.op_type for n in r.before} <= {"Slice", "Gather"}


def test_indices_that_are_not_there_are_an_error() -> None:
    r = rewrite(Alone("Relu", [(8,)]), {"x0": (some(1, 2),)})
    with pytest.raises(PartitionError, match="input 0 lacks indices of axis 0 that the part needs"):
        r.narrow(0, (some(2, 3),))


def test_neighbours_are_a_slice() -> None:
    r = rewrite(Alone("Relu", [(8,)]), {})
    r.narrow(0, (some(2, 3, 4),))
    assert [n.op_type for n in r.before] == ["Slice"]
    r = rewrite(Alone("Relu", [(8,)]), {})
    r.narrow(0, (some(2, 4),))
    assert [n.op_type for n in r.before] == ["Gather"]


def test_axes_that_broadcast_are_not_cut() -> None:
    r = rewrite(Alone("Add", [(2, 6), (1,)]), {"op": (None, some(0, 1))})
    r.narrow_broadcast(1, r.kept_out())
    assert r.before == []
    r.narrow_broadcast(0, r.kept_out())
    assert r.node.input[0] != "x0"


@pytest.mark.parametrize("opset", [11, 13])
def test_integers_are_set_where_the_opset_has_them(opset: int) -> None:
    r = rewrite(Alone("Squeeze", [(2, 1)], opset=opset), {})
    r.set_ints(1, "axes", [1], since=13)
    if opset < 13:
        assert helper.get_node_attr_value(r.node, "axes") == [1]
    else:
        assert r.constants[r.node.input[1]].tolist() == [1]


def test_an_attribute_is_set_once() -> None:
    r = rewrite(Alone("Softmax", [(2, 3)], axis=1), {})
    r.set("axis", 0)
    assert [(a.name, a.i) for a in r.node.attribute] == [("axis", 0)]


def test_a_target_has_the_sizes_of_the_part() -> None:
    alone = Alone("Reshape", [(2, 12)], [some(2, 3, 4)])
    r = rewrite(alone, {"op": (None, some(0, 2), None)})
    dims(r, 1)
    assert r.constants[r.node.input[1]].tolist() == [2, 2, 4]
    whole = rewrite(alone, {})
    dims(whole, 1)
    assert whole.node.input[1] == "w"


@pytest.mark.parametrize("opset", [8, 9])
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
def test_sizes_are_put_in_their_places(opset: int, places: list[tuple[bool, int, int]]) -> None:
    r = rewrite(Alone("Relu", [(2,)], opset=opset), {})
    static, values, given_ = map(list, zip(*places, strict=True))
    nodes = put(r, static, values, "value")
    out = nodes[-1].output[0]
    found = computed(r, out, {"value": np.asarray(given_, np.int64)}, nodes)
    assert found.tolist() == [v if s else g for s, v, g in places]


def test_sizes_of_a_block() -> None:
    assert sizes((None, some(0, 4), some(1)), (2, 5, 3)) == [2, 2, 1]


@pytest.mark.parametrize(("values", "period"), [([1, 1, 1], 1), ([0, 1, 0, 1], 2), ([0, 1, 1], 3), ([4], 1)])
def test_after_how_many_values_a_list_repeats(values: list[int], period: int) -> None:
    assert repeats_after(np.asarray(values)) == period
