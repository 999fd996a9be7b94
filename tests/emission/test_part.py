"""Part models of small networks, node by node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxpart import PartitionError, analyse, arrays, load
from onnxpart.emission.part import declare, draft_part, emit_part
from onnxpart.planning.division import Division
from onnxpart.planning.partition import Partition
from onnxpart.planning.placement import place
from onnxpart.planning.planner import partition
from onnxpart.storage.rows import stream
from tests.networks.net import Net

WIDTH = 4


def reshaped() -> Partition:
    """[N, 3] to four units, through a reshape to [N, 4, 1], to two outputs."""
    n = Net(("x", ("N", 3)))
    h = n.op("Relu", n.linear("x", 3, WIDTH, name="in"))
    h = n.op("Reshape", h, n.ints(-1, WIDTH, 1), name="apart")
    h = n.op("Reshape", h, n.ints(-1, WIDTH), name="flat")
    return partition(analyse(load(n.model(n.linear(h, WIDTH, 2, name="out"), shape=("N", 2)))), 2)


def test_a_part_has_slices_and_sizes_of_its_own() -> None:
    made = reshaped()
    whole = arrays(made.analysis.model.proto)
    for p, units in enumerate((slice(0, 2), slice(2, 4))):
        part = emit_part(made, p)
        onnx.checker.check_model(part, full_check=True)
        mine = arrays(part)
        assert np.array_equal(mine["in.weight"], whole["in.weight"][units])
        assert np.array_equal(mine["out.weight"], whole["out.weight"][:, units])
        assert np.array_equal(mine["out.bias"], whole["out.bias"])
        assert [n.op_type for n in part.graph.node] == ["Gemm", "Relu", "Reshape", "Reshape", "Gemm"]
        targets = {n.name: n.input[1] for n in part.graph.node if n.op_type == "Reshape"}
        numbers = {
            t.name: numpy_helper.to_array(t).tolist() for t in part.graph.initializer if t.name in targets.values()
        }
        assert numbers[targets["apart"]] == [-1, 2, 1]
        assert numbers[targets["flat"]] == [-1, 2]


def test_inputs_and_outputs_are_the_wholes() -> None:
    made = reshaped()
    for p in range(2):
        part = emit_part(made, p)
        assert list(part.graph.input) == list(made.analysis.model.proto.graph.input)
        assert list(part.graph.output) == list(made.analysis.model.proto.graph.output)


def test_what_is_declared_of_a_piece() -> None:
    """The part's own sizes; what is of unknown shape isn't divided, and ONNX Runtime's Scan needs what was declared."""
    made, value = reshaped(), onnx.helper.make_tensor_value_info("body", onnx.TensorProto.FLOAT, (2, WIDTH, 1))
    for tensor, expected in (("unknown", [2, WIDTH, 1]), ("apart", [0, 2, 1])):
        declare(made.division, value, tensor, 0)
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == expected


def test_given_weights_take_the_place_of_slices() -> None:
    made = reshaped()
    given = np.full((2, 3), 7, np.float32)
    assert np.array_equal(arrays(draft_part(made, 0, {"in.weight": stream(given)}).model())["in.weight"], given)


def test_units_that_form_no_grid_are_refused_by_name() -> None:
    n = Net(("x", ("N", 3)))
    h = n.op("Relu", n.linear("x", 3, WIDTH, name="in"))
    square = n.op("Tanh", n.op("Reshape", h, n.ints(-1, 2, 2), name="square"), name="tanh")
    flat = n.op("Reshape", square, n.ints(-1, WIDTH), name="flat")
    analysis = analyse(load(n.model(n.linear(flat, WIDTH, 2, name="out"), shape=("N", 2))))
    made = partition(analysis, 2)
    parts = made.division.parts.copy()
    for f in analysis.all_fields():
        if f.size == WIDTH:
            parts[f.ravel()] = (0, 1, 1, 0)  # a diagonal
    division = Division(analysis, parts, 2, frozenset())
    with pytest.raises(PartitionError, match="don't form a block in part 0"):
        emit_part(Partition(analysis, made.plan, division, place(division)), 0)
