"""What depends on the data in its size: places that are found, boxes that are kept, tokens that go to an expert."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from onnx import ModelProto, TensorProto, helper

from onnxpart import OnnxpartError, PartitionError, Split, analyse, cut, load, plan, split
from onnxpart.analysis.rules import table as rules
from onnxpart.cli import tables
from onnxpart.planning.division import Division
from onnxpart.verification.conditions import check_conditions
from tests.networks.net import Net
from tests.networks.verified import split_holds

SIDE, HIDDEN, KINDS, EXPERTS, TOKEN = 4, 12, 3, 2, 6


def halves(done: Split, *weights: str) -> bool:
    """Whether all hidden axes of some weights are divided evenly."""
    shapes = [(done.plan.by_name[w].shape, done.plan.by_name[w].part_shape(0)) for w in weights]
    return all(
        p == (n // done.plan.k if n == HIDDEN else n) for s, part in shapes for n, p in zip(s, part, strict=True)
    )


def typed(model: ModelProto, **outputs: int) -> ModelProto:
    """The model with element types for outputs that aren't float32."""
    for value in model.graph.output:
        value.type.tensor_type.elem_type = outputs.get(value.name, TensorProto.FLOAT)
    return model


def scores(n: Net) -> str:
    """How likely each kind is at each place, by two layers: [N, KINDS, places]."""
    h = n.op("Relu", n.conv("x", 2, HIDDEN, name="a"))
    h = n.op("Relu", n.conv(h, HIDDEN, HIDDEN, name="b"))
    return n.op("Reshape", n.conv(h, HIDDEN, KINDS, name="head"), n.ints(0, KINDS, -1), name="scores")


def kept(n: Net) -> tuple[str, str]:
    """The scores above a threshold, and the numbers of their places."""
    flat = n.op("Reshape", n.op("Sigmoid", scores(n)), n.ints(-1))
    found = n.op("NonZero", n.op("Greater", flat, n.number(0.5)))
    where = n.op("Squeeze", found, n.ints(0), name="where")
    return n.op("Gather", flat, where, name="best"), where


def detector() -> ModelProto:
    """One stage: what is found in the whole is what the mean of the parts' scores says."""
    n = Net(("x", (1, 2, SIDE, SIDE)))
    best, where = kept(n)
    return typed(n.model(best, where, shape=("M",)), where=TensorProto.INT64)


def branching() -> ModelProto:
    """The same, with nothing done where nothing is found, as exporters write it."""
    n = Net(("x", (1, 2, SIDE, SIDE)))
    best, _ = kept(n)
    empty = n.op("Equal", n.op("Size", best), n.ints(0))
    none, some = Net(opset=n.opset), Net(opset=n.opset)
    results = none.op("ConstantOfShape", n.ints(0), name="none"), some.op("Mul", best, best, name="some")
    graphs = [
        helper.make_graph(m.nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None])])
        for m, name in zip((none, some), results, strict=True)
    ]
    n.op("If", empty, then_branch=graphs[0], else_branch=graphs[1], name="squares")
    return n.model("squares", shape=("M",))


def compressed(op_type: str) -> ModelProto:
    """Features of chosen places, through layers of their own."""
    n = Net(("x", (2, SIDE, 5)), ("choice", (SIDE,)))
    chosen = n.op("Greater", "choice", n.number(0))
    if op_type == "Compress":
        rows = n.op("Compress", "x", chosen, axis=1)
    elif op_type == "Unique":
        rows = n.op("Gather", "x", n.ops("Unique", n.op("Cast", "choice", to=TensorProto.INT64), count=2)[1], axis=1)
    else:
        rows = n.op("Gather", "x", n.op("Squeeze", n.op("NonZero", chosen), n.ints(0)), axis=1)
    h = n.op("Relu", n.op("MatMul", rows, n.random("a", 5, HIDDEN)))
    h = n.op("Relu", n.op("MatMul", h, n.random("b", HIDDEN, HIDDEN)))
    n.op("ReduceMean", n.op("MatMul", h, n.random("head", HIDDEN, 3)), axes=[1], keepdims=0, name="y")
    return n.model("y", shape=(2, 3))


def stages(outputs: list[str]) -> ModelProto:
    """Two: places that the first one finds are looked at by the second, which has weights."""
    n = Net(("x", (1, 2, SIDE, SIDE)))
    _, where = kept(n)
    features = n.op("Transpose", n.op("Reshape", "x", n.ints(2, -1)), perm=[1, 0])
    rows = n.op("Gather", features, n.op("Mod", where, n.ints(SIDE * SIDE)))
    n.linear(n.op("Relu", n.linear(rows, 2, HIDDEN, name="c")), HIDDEN, 3, name="kinds")
    shapes = {"kinds": ("M", 3), "where": ("M",)}
    return typed(n.model(*outputs, shape=shapes), where=TensorProto.INT64)


def experts() -> ModelProto:
    """Each token goes to one of two experts, which see their own tokens only."""
    n = Net(("x", ("N", TOKEN)))
    best = n.op("ArgMax", n.op("MatMul", "x", n.random("router", TOKEN, EXPERTS)), axis=1, keepdims=0)
    result = n.op("Mul", "x", n.number(0))
    for e in range(EXPERTS):
        where = n.op("Transpose", n.op("NonZero", n.op("Equal", best, n.ints(e))), perm=[1, 0])
        rows = n.op("GatherND", "x", where)
        h = n.op("Relu", n.linear(rows, TOKEN, HIDDEN, name=f"in{e}"))
        result = n.op("ScatterND", result, where, n.linear(h, HIDDEN, TOKEN, name=f"out{e}"))
    return n.model(result, shape=("N", TOKEN))


def looked_up(op_type: str) -> ModelProto:
    """Each token looks up the weights of its expert."""
    n = Net(("x", ("N", TOKEN)))
    index = n.op("ArgMax", n.op("MatMul", "x", n.random("router", TOKEN, EXPERTS)), axis=1, keepdims=0)
    index = index if op_type == "Gather" else n.op("Unsqueeze", index, n.ints(1))
    h = n.op("Unsqueeze", n.op("Tanh", n.linear("x", TOKEN, HIDDEN, name="first")), n.ints(2))
    for name, shape in (("in", (HIDDEN, HIDDEN)), ("out", (TOKEN, HIDDEN))):
        h = n.op("Tanh", n.op("MatMul", n.op(op_type, n.random(name, EXPERTS, *shape), index), h))
    return n.model(n.op("Squeeze", h, n.ints(2)), shape=("N", TOKEN))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("build", [detector, branching])
def test_what_is_found_by_the_mean_of_the_parts(k: int, build: Callable[[], ModelProto]) -> None:
    done = split(build(), k)
    assert done.plan.same_graph
    assert halves(done, "a.weight", "b.weight", "head.weight")
    assert split_holds(done)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("op_type", ["Compress", "NonZero", "Unique"])
def test_layers_on_what_the_input_chooses(k: int, op_type: str) -> None:
    done = split(compressed(op_type), k)
    assert done.plan.same_graph
    assert halves(done, "a", "b", "head")
    assert split_holds(done)


@pytest.mark.parametrize("k", [2, 3])
def test_experts_that_see_their_own_tokens(k: int) -> None:
    """The router is every part's own, and so are the tokens that an expert gets in it."""
    done = split(experts(), k)
    assert halves(done, "in0.weight", "out0.weight", "in1.weight", "out1.weight")
    assert done.plan.by_name["router"].part_shape(0) == (TOKEN, EXPERTS)
    assert split_holds(done)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("op_type", ["Gather", "GatherND"])
def test_experts_whose_weights_are_looked_up(k: int, op_type: str) -> None:
    done = split(looked_up(op_type), k)
    assert halves(done, "first.weight", "in", "out")
    assert split_holds(done)
    assert not check_conditions(done.analysis, done.plan)


def test_a_size_is_told_by_data_or_by_sizes() -> None:
    n = Net(("x", ("N", 3)))
    rows = n.op(
        "Gather", "x", n.op("Squeeze", n.op("NonZero", n.op("ReduceSum", "x", n.ints(1), keepdims=0)), n.ints(0))
    )
    n.op("Add", rows, n.number(1), name="chosen")
    n.op("Neg", "x", name="all")
    shapes = analyse(load(n.model("chosen", "all", shape={"chosen": ("M", 3), "all": ("N", 3)}))).shapes
    assert shapes.dynamic_dims("chosen") == shapes.dynamic_dims("all") == (True, False)
    assert shapes.sized_by_data("chosen")
    assert not shapes.sized_by_data("all")


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [(["kinds"], "differ in size, which depends on the data"), (["where", "kinds"], "aren't floating-point numbers")],
)
def test_a_second_stage_is_refused_and_the_advice_holds(outputs: list[str], reason: str) -> None:
    model = load(stages(outputs))
    with pytest.raises(
        PartitionError, match=f"values of '{outputs[0]}' can't be averaged, as they {reason}"
    ) as refused:
        plan(analyse(model), 2)
    (names,) = re.findall(r"--outputs (\S+)\.$", str(refused.value))
    done = split(cut(model, names.split(",")), 2)
    assert halves(done, "a.weight", "b.weight")
    assert split_holds(done)


def test_a_mix_of_nothing_divided_exists_once() -> None:
    """The softmax mixes kinds that thresholds hold with one that nothing reads: all of it is in every part."""
    n = Net(("x", (1, 2, SIDE, SIDE)))
    odds = n.op("Softmax", n.op("Transpose", scores(n), perm=[0, 2, 1]), axis=2)
    rest = n.op("Slice", odds, n.ints(1), n.ints(KINDS), n.ints(2), name="rest")
    n.op("NonZero", n.op("Greater", rest, n.number(0.3)), name="found")
    done = split(typed(n.model("found", shape=(3, "M")), found=TensorProto.INT64), 2)
    assert not done.plan.duplicated
    assert done.plan.same_graph
    assert halves(done, "a.weight", "b.weight", "head.weight")
    assert split_holds(done)


def test_tokens_that_a_part_chooses_have_no_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Division, "no_mean", lambda self, name: "")
    with pytest.raises(OnnxpartError):
        split_holds(split(experts(), 2))


def test_a_choice_by_units_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NonZero as an operator that finds the same in every part, whatever units it reads."""
    n = Net(("x", (1, 2, SIDE, SIDE)))
    h = n.op("Relu", n.conv(n.op("Relu", n.conv("x", 2, HIDDEN, name="a")), HIDDEN, HIDDEN, name="b"))
    found = n.op("Cast", n.op("NonZero", n.op("Greater", h, n.number(0.2))), to=TensorProto.FLOAT)
    h = n.op("Add", n.op("GlobalAveragePool", h), n.op("ReduceMean", found, keepdims=0))
    model = n.model(n.linear(n.op("Flatten", h), HIDDEN, 3), shape=(1, 3))
    assert split_holds(split(model, 2))
    rule = rules.Rule("source", (9, 13), lambda op: [()], None, "no")
    monkeypatch.setitem(rules.TABLE, "NonZero", rule)
    monkeypatch.setattr("onnxpart.analysis.walk._differs", lambda op: False)
    assert not split_holds(split(model, 2))


def test_operators_blocked_for_one_reason_are_one_note() -> None:
    lines = tables.notes(plan(analyse(load(experts())), 2))
    assert [line for line in lines if "NonZero" in line] == [
        "blocked: NonZero 'nonzero' and 1 more NonZero: the operator NonZero has no rule: its size depends on the data"
    ]
    one = tables.notes(plan(analyse(load(detector())), 2))
    assert any(line.startswith("blocked: NonZero 'nonzero': the operator") for line in one)


def test_the_trial_sizes_contradict_nothing() -> None:
    """What is found is as long as trial values say in all the places where it meets itself."""
    shapes = analyse(load(experts())).shapes
    assert shapes.shape["gathernd"] == shapes.shape["out0"] == (5, TOKEN)
    assert shapes.other is not None
    assert shapes.other.shape["gathernd"] == (7, TOKEN)
