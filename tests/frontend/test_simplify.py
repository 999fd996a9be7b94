"""What is known before the analysis: branches that are taken, and what goes through sequences and optionals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from onnx import ModelProto, TensorProto, helper

from onnxpart import load, split, verify
from onnxpart.ir.protos import graphs_of
from tests.networks.control_flow import hidden
from tests.networks.looping import FEATURES, INT64, SIZE, given, graph, integer, length, loop, scan, taken, zeros
from tests.networks.net import Net

Build = Callable[[Net, str], str]


def network(build: Build, opset: int = 17, batch: int | str = "N") -> ModelProto:
    n = Net(("x", (batch, FEATURES)), opset=opset)
    h = build(n, n.op("Tanh", n.linear("x", FEATURES, SIZE, name="before")))
    return n.model(n.linear(h, SIZE, 3, name="y"), shape=(batch, 3))


def squeezed(axis: int) -> Build:
    """What exporters write for a squeeze of an axis that may or may not be of length 1."""

    def build(n: Net, h: str) -> str:
        size = n.op("Gather", n.op("Shape", h), n.ints(axis))
        condition = n.op("Equal", size, n.ints(1))

        def otherwise(m: Net) -> list[str]:
            return [hidden(m, h, "b")]

        return taken(n, condition, lambda m: [m.op("Relu", m.linear(h, SIZE, SIZE, name="a"))], otherwise)[0]

    return build


def test_the_branch_of_a_fixed_size_is_taken() -> None:
    model = load(network(squeezed(1)))
    assert "If" not in model.op_types
    assert "b.weight" in model.initializers
    assert "a.weight" not in model.initializers
    done = split(model, 2)
    assert verify(done.analysis, done.plan).holds
    assert done.plan.by_name["b.weight"].part_shape(0) == (SIZE // 2, SIZE // 2)


def test_the_branch_of_a_batch_that_is_fixed_is_taken() -> None:
    assert "a.weight" in load(network(squeezed(0), batch=1)).initializers
    assert "If" not in load(network(squeezed(0), batch=1)).op_types


def test_a_size_that_may_be_anything_decides_at_run_time() -> None:
    """Neither trial value is 1, but the batch may be."""
    model = load(network(squeezed(0)))
    assert "If" in model.op_types
    done = split(model, 2)
    assert verify(done.analysis, done.plan).holds
    for weight in ("a.weight", "b.weight"):
        assert done.plan.by_name[weight].part_shape(0) == (SIZE // 2, SIZE // 2)


def test_a_branch_within_a_loop_is_taken() -> None:
    def build(n: Net, h: str) -> str:
        def step(m: Net, _: str, s: list[str]) -> tuple[list[str], list[str]]:
            return [taken(m, "going", lambda q: [hidden(q, s[0], "a")], lambda q: [q.op("Neg", s[0])])[0]], []

        return loop(n, integer(n, 3), [h], step)[0]

    model = load(network(build))
    assert "If" not in model.op_types
    done = split(model, 2)
    assert verify(done.analysis, done.plan).holds
    assert done.plan.same_graph


# -- sequences and optionals ----------------------------------------------------------------------------------------


def changed(n: Net, h: str) -> str:
    """Made of three, one more put in, the last taken out, counted from both ends, and joined."""
    pieces = n.op("SequenceConstruct", hidden(n, h, "a"), hidden(n, h, "b"), h)
    pieces = n.op("SequenceErase", n.op("SequenceInsert", pieces, hidden(n, h, "c"), integer(n, 1)), integer(n, -1))
    inner = n.op("Mul", n.op("SequenceAt", pieces, integer(n, 1)), n.op("SequenceAt", pieces, integer(n, -1)))
    joined = n.op("ConcatFromSequence", pieces, axis=-1)
    return n.op("Add", inner, n.linear(joined, 3 * SIZE, SIZE, name="d"))


def stacked(n: Net, h: str) -> str:
    first = n.op("SequenceInsert", n.op("SequenceEmpty"), hidden(n, h, "a"))
    both = n.op("ConcatFromSequence", n.op("SequenceInsert", first, h), axis=1, new_axis=1)
    return n.op("ReduceMean", both, axes=[1], keepdims=0)


def split_up(*sizes: int) -> Build:
    def build(n: Net, h: str) -> str:
        wide = n.linear(h, SIZE, 2 * SIZE, name="a")
        given = n.ints(*sizes) if len(sizes) > 1 else integer(n, sizes[0])
        pieces = n.op("SplitToSequence", wide, given, axis=-1)
        return n.op("Mul", n.op("SequenceAt", pieces, integer(n, 0)), n.op("SequenceAt", pieces, integer(n, 1)))

    return build


def counted(n: Net, h: str) -> str:
    pieces = n.op("SequenceConstruct", h, hidden(n, h, "a"))
    both = n.op("Add", n.op("SequenceAt", pieces, integer(n, 0)), n.op("SequenceAt", pieces, integer(n, 1)))
    return n.op("Div", both, n.op("Cast", n.op("SequenceLength", pieces), to=TensorProto.FLOAT))


def optional(n: Net, h: str) -> str:
    maybe = n.op("Optional", hidden(n, h, "a"))
    there = n.op("OptionalHasElement", maybe)
    return taken(n, there, lambda m: [m.op("OptionalGetElement", maybe)], lambda m: [m.op("Neg", h)])[0]


def slices(keepdims: int, axis: int, stack: int) -> Build:
    """Cut into slices, which are read by number and joined again."""

    def build(n: Net, h: str) -> str:
        cube = n.op("Reshape", n.linear(h, SIZE, 3 * SIZE, name="a"), n.ints(-1, 3, SIZE))
        pieces = n.op("SplitToSequence", cube, axis=1, keepdims=keepdims)
        one = n.op("SequenceAt", pieces, integer(n, 2))
        one = n.op("Reshape", one, n.ints(-1, SIZE))
        again = n.op("ConcatFromSequence", pieces, axis=axis, new_axis=stack)
        again = n.op("Reshape", again, n.ints(-1, 3 * SIZE))
        return n.op("Add", one, n.linear(n.op("Tanh", again), 3 * SIZE, SIZE, name="b"))

    return build


PLUMBING: dict[str, Build] = {
    "changed": changed,
    "stacked": stacked,
    "split by sizes": split_up(SIZE, SIZE),
    "split by a length": split_up(SIZE),
    "counted": counted,
    "slices": slices(0, 1, 1),
    "slices stacked last": slices(0, 2, 1),
    "slices joined": slices(0, 1, 0),
    "slices that keep their axis": slices(1, 1, 0),
}


@pytest.mark.parametrize("name", PLUMBING)
@pytest.mark.parametrize("opset", [11, 17])
def test_what_goes_through_a_sequence_is_divided(name: str, opset: int) -> None:
    model = load(network(PLUMBING[name], opset))
    assert not {kind for kind in model.op_types if "Sequence" in kind}
    done = split(model, 2)
    assert verify(done.analysis, done.plan).holds
    assert not done.plan.blocked
    assert done.plan.by_name["a.weight"].part_shape(0)[0] * 2 == done.plan.by_name["a.weight"].shape[0]


def test_an_optional_that_holds_something_is_that() -> None:
    model = load(network(optional, 18))
    assert not {"If", "Optional"} & model.op_types
    done = split(model, 2)
    assert verify(done.analysis, done.plan).holds
    assert not done.plan.blocked


def collecting(first: int, read: Callable[[Net, str], str]) -> ModelProto:
    """x ``[T, N, 5]``; a loop appends to a sequence of `first` tensors, which is read behind it."""
    n = Net(("x", ("T", "N", FEATURES)))
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))

    def build(m: Net) -> list[str]:
        h = m.op("Tanh", m.linear(m.op("Gather", "x", "t"), FEATURES, SIZE, name="a"))
        return [m.op("Identity", "going"), m.op("SequenceInsert", "list", h)]

    start = n.op("Gather", "x", integer(n, 0))
    pieces = [n.op("Relu", n.linear(start, FEATURES, SIZE, name=f"first{i}")) for i in range(first)]
    empty = n.op("SequenceConstruct", *pieces) if first else n.op("SequenceEmpty")
    body = graph(n, "body", {"t": "count", "going": "going", "list": "state"}, build)
    for value in (body.input[2], body.output[1]):
        value.type.CopyFrom(kind)
    found = n.op("Loop", length(n), "", empty, name="loop", body=body)
    y = n.op("MatMul", read(n, found), n.random("out", SIZE, 3))
    return n.model(y, shape=[None] * (2 if read in (READ["joined"], READ["the last"]) else 3))


READ: dict[str, Callable[[Net, str], str]] = {
    "stacked": lambda n, s: n.op("ConcatFromSequence", s, axis=0, new_axis=1),
    "stacked in the middle": lambda n, s: n.op("ConcatFromSequence", s, axis=1, new_axis=1),
    "joined": lambda n, s: n.op("ConcatFromSequence", s, axis=0),
    "the last": lambda n, s: n.op("SequenceAt", s, integer(n, -1)),
}


@pytest.mark.parametrize(("read", "first"), [(r, i) for r in READ for i in (0, 1) if (r, i) != ("the last", 1)])
def test_what_a_loop_appends_is_collected(read: str, first: int) -> None:
    model = load(collecting(first, READ[read]))
    assert not {kind for kind in model.op_types if "Sequence" in kind}
    done = split(model, 2)
    assert verify(done.analysis, done.plan).holds
    assert done.plan.by_name["a.weight"].part_shape(0) == (SIZE // 2, FEATURES)


@pytest.mark.parametrize("form", ["Loop", "Scan"])
def test_weights_that_a_loop_hands_on_are_read_from_outside(form: str) -> None:
    n = Net(("x", ("T", "N", FEATURES)))
    weights = [n.random("w", FEATURES, SIZE), n.random("u", SIZE, SIZE)]

    def step(m: Net, x: str, states: list[str]) -> tuple[list[str], list[str]]:
        h, w, u = states
        made = m.op("Tanh", m.op("Add", m.op("MatMul", x, w), m.op("MatMul", h, u)))
        return [made, m.op("Identity", w), m.op("Identity", u)], []

    def numbered(m: Net, t: str, states: list[str]) -> tuple[list[str], list[str]]:
        return step(m, m.op("Gather", "x", t), states)

    made = scan(n, [zeros(n), *weights], step) if form == "Scan" else loop(n, length(n), [zeros(n), *weights], numbered)
    y = n.linear(n.op("Add", made[0], n.op("MatMul", made[0], made[2])), SIZE, 3, name="y")
    done = split(n.model(y, shape=("N", 3)), 2)
    assert verify(done.analysis, done.plan).holds
    assert done.plan.by_name["w"].part_shape(0) == (FEATURES, SIZE // 2)
    assert done.plan.by_name["u"].part_shape(0) == (SIZE // 2, SIZE // 2)


def test_a_place_that_only_the_run_knows_is_a_barrier() -> None:
    def build(n: Net, h: str) -> str:
        n.inputs.append(helper.make_tensor_value_info("which", INT64, []))
        found = n.op("SequenceAt", n.op("SequenceConstruct", h, hidden(n, h, "a")), "which", name="choice")
        return hidden(n, found, "b")

    done = split(network(build), 2)
    assert verify(done.analysis, done.plan).holds
    assert any("SequenceAt 'choice'" in entry and "isn't known" in entry for entry in done.plan.blocked)
    assert done.plan.by_name["b.bias"].part_shape(0) == (SIZE // 2,)


def test_a_loop_that_appends_growing_tensors_is_left_alone() -> None:
    """They can't be collected, for they have different sizes; how many there are isn't known."""
    n = Net(("x", ("N", FEATURES)))
    h = n.op("Tanh", n.linear("x", FEATURES, SIZE, name="before"))
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))

    def build(m: Net) -> list[str]:
        longer = m.op("Concat", "cache", h, axis=0)
        return [m.op("Identity", "going"), longer, m.op("SequenceInsert", "list", longer)]

    body = graph(n, "body", {"t": "count", "going": "going", "cache": "state", "list": "state"}, build)
    for value in (body.input[3], body.output[2]):
        value.type.CopyFrom(kind)
    _, found = n.ops("Loop", length(n), "", h, n.op("SequenceEmpty"), count=2, name="loop", body=body)
    joined = n.op("ReduceMean", n.op("ConcatFromSequence", found, axis=0), axes=[0], keepdims=1)
    joined = n.op("Reshape", joined, n.ints(1, SIZE))
    y = n.linear(hidden(n, n.op("Add", joined, h), "a"), SIZE, 3, name="y")
    done = split(n.model(y, shape=("N", 3)), 2)
    assert verify(done.analysis, done.plan).holds
    assert any("Loop 'loop': it carries a sequence" in entry for entry in done.plan.blocked)


@pytest.mark.parametrize("build", [changed, stacked])
def test_the_same_graph_comes_back(build: Build) -> None:
    model = load(network(build))
    assert load(split(model, 2).whole).digest == model.digest


def mapped(n: Net, h: str) -> str:
    """The body of the map captures units."""
    body = graph(n, "body", {"s": "state"}, lambda m: [m.op("Tanh", m.op("Add", "s", h))])
    found = n.op("SequenceMap", n.op("SequenceConstruct", h, h), name="map", body=body)
    return n.op("Reshape", n.op("SequenceAt", found, integer(n, 0)), n.ints(-1, SIZE))


def chosen(n: Net, h: str) -> str:
    """Either branch gives a sequence, and captures units."""
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    branches = [graph(n, "branch", {}, lambda m, c=count: [m.op("SequenceConstruct", *[h] * c)]) for count in (1, 2)]
    for branch in branches:
        branch.output[0].type.CopyFrom(kind)
    found = n.op("If", given(n), name="choice", then_branch=branches[0], else_branch=branches[1])
    return n.op("Reshape", n.op("SequenceAt", found, integer(n, 0)), n.ints(-1, SIZE))


@pytest.mark.parametrize(("build", "title"), [(mapped, "SequenceMap 'map'"), (chosen, "If 'choice'")])
def test_a_barrier_reads_what_its_graphs_capture(build: Build, title: str) -> None:
    """The units in front are replicated: in the whole each copy of the barrier reads its own part's."""
    done = split(network(lambda n, h: hidden(n, build(n, hidden(n, h, "a")), "b")), 2)
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds
    assert any(entry.startswith(title) for entry in done.plan.blocked)
    assert "a.bias" in done.plan.replicated
    assert done.plan.by_name["b.bias"].part_shape(0) == (SIZE // 2,)


def test_tensors_of_unknown_rank_are_left_in_their_sequence() -> None:
    def build(n: Net, h: str) -> str:
        pieces = n.op("SequenceConstruct", h, n.op("Mystery", h, domain="example.unknown"))
        return n.op("Reshape", n.op("ConcatFromSequence", pieces, axis=0), n.ints(-1, SIZE))

    model = load(network(build))
    assert "ConcatFromSequence" in model.op_types


def test_a_loop_over_a_sequence_that_does_not_fit_its_body_is_left_alone() -> None:
    model = collecting(0, READ["stacked"])
    loop_ = next(node for node in model.graph.node if node.op_type == "Loop")
    (body,) = graphs_of(loop_)
    body.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, []))
    assert "SequenceInsert" in load(model).op_types
