"""What `why` names as the cause is what holds the units, and following its advice divides them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnxpart import PartitionError, Plan, UsageError, Why, analyse, cut, load, plan, why
from onnxpart.inspection.explain import Advice, Axis
from onnxpart.inspection.tie_graph import Cause, Step
from onnxpart.planning.layers import layers_of
from onnxpart.planning.unit_classes import decide
from tests.networks.command import run, run_json
from tests.networks.net import Net

IMAGE = ("x", ("N", 2, 4, 4))


def classified(n: Net, h: str, channels: int = 6, *outputs: str) -> ModelProto:
    """The network with pooling and a linear layer behind `h`, and further outputs."""
    n.linear(n.op("Flatten", n.op("GlobalAveragePool", h, name="pool"), name="flat"), channels, 3, name="logits")
    return n.model("logits", *outputs, shape=None if outputs else ("N", 3))


def residual() -> ModelProto:
    """Two blocks in a residual stream, which is an output too."""
    n = Net(IMAGE)
    stem = n.conv("x", 2, 6, name="stem")
    one = n.op("Add", stem, n.conv(n.op("Relu", stem), 6, 6, name="block1"), name="add1")
    two = n.op("Add", one, n.conv(n.op("Relu", one), 6, 6, name="block2"), name="add2")
    return classified(n, two, 6, n.op("Tanh", two, name="features"))


def two_exports() -> ModelProto:
    n = Net(IMAGE)
    h = n.op("Relu", n.conv("x", 2, 6, name="stem"), name="relu")
    return classified(n, n.op("Tanh", h, name="tanh"), 6, "relu", "tanh")


def unknown(side: bool) -> ModelProto:
    """A network with an operator without a rule, beside the way to the logits or on it."""
    n = Net(IMAGE)
    h = n.op("Relu", n.conv("x", 2, 6, name="stem"), name="relu")
    odd = n.op("Det", h, name="odd") if side else n.op("Mystery", h, name="odd", domain="example.unknown")
    if side:
        return classified(n, h, 6, n.op("Neg", odd, name="determinant"))
    model = classified(n, odd)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("odd", onnx.TensorProto.FLOAT, ["N", 6, 4, 4]))
    return model


def narrow() -> ModelProto:
    n = Net(IMAGE)
    h = n.op("Relu", n.conv("x", 2, 12, name="wide"))
    return classified(n, n.op("Relu", n.conv(h, 12, 4, name="thin")), 4)


def groups() -> ModelProto:
    n = Net(IMAGE, opset=21)
    h = n.conv("x", 2, 12, name="wide")
    scale, shift = n.positive("scale", 12), n.random("shift", 12)
    return classified(n, n.op("GroupNormalization", h, scale, shift, name="norm", num_groups=3), 12)


def shared_scale() -> ModelProto:
    """12 channels in 3 groups of 4, and one scale for each group."""
    n = Net(IMAGE)
    h = n.op("Reshape", n.conv("x", 2, 12, name="wide"), n.ints(0, 3, 4, 4, 4))
    h = n.op("Mul", h, n.positive("scale", 3, 1, 1, 1), name="scaled")
    return classified(n, n.op("Reshape", h, n.ints(0, 12, 4, 4)), 12)


def narrow_groups() -> ModelProto:
    """A convolution in 4 groups of 3: whole groups for 4 parts."""
    n = Net(IMAGE)
    h = n.op("Relu", n.conv("x", 2, 12, name="wide"))
    return classified(n, n.op("Relu", n.conv(h, 12, 12, group=4, name="grouped")), 12)


def chosen() -> ModelProto:
    """The position of the largest channel is an output."""
    n = Net(IMAGE)
    h = n.op("Relu", n.conv("x", 2, 6, name="stem"), name="relu")
    n.op("ArgMax", h, axis=1, name="winner")
    n.linear(n.op("Flatten", n.op("GlobalAveragePool", h)), 6, 3, name="logits")
    model = n.model("logits", shape=["N", 3])
    model.graph.output.append(onnx.helper.make_tensor_value_info("winner", onnx.TensorProto.INT64, ["N", 1, 4, 4]))
    return model


def with_input() -> ModelProto:
    """Channels next to the input's, added to other ones."""
    n = Net(IMAGE)
    h = n.op("Concat", "x", n.conv("x", 2, 6, name="stem"), axis=1, name="both")
    h = n.op("Add", n.conv("x", 2, 8, name="other"), h, name="sum")
    return classified(n, h, 8)


def explained(model: ModelProto, name: str, k: int = 2) -> Why:
    return why(analyse(load(model)), name, k)


def axis(model: ModelProto, name: str, k: int = 2, along: int = 0) -> Axis:
    (found,) = [a for a in explained(model, name, k).axes if a.axes == (along,)]
    return found


def follow(model: ModelProto, advice: Advice) -> Plan:
    loaded = load(model)
    return plan(analyse(cut(loaded, advice.outputs) if advice.outputs else loaded), advice.k)


def units(planned: Plan, name: str, along: int = 0) -> list[int]:
    return [planned.by_name[name].part_shape(p)[along] for p in range(planned.k)]


def test_the_chain_to_an_output_names_every_tie() -> None:
    found = axis(residual(), "block2.bias")
    assert found.undivided == found.units == 6
    assert found.chain == (
        Step("Conv 'block2'", "block2.bias axis 0", "block2.weight axis 0"),
        Step("Add 'add2'", "block2.weight axis 0", "stem.weight axis 0"),
    )
    assert found.cause == Cause("output", "features", "it is tied to the output 'features'")
    assert found.advice == (Advice(2, ("logits",)),)
    assert units(follow(residual(), found.advice[0]), "block2.bias") == [3, 3]


def test_outputs_that_hold_together_are_left_out_together() -> None:
    found = axis(two_exports(), "stem", along=1)
    assert found.cause is not None
    assert (found.cause.kind, found.cause.node) == ("output", "relu")
    assert found.advice == (Advice(2, ("logits",)),)
    with pytest.raises(PartitionError):
        follow(two_exports(), Advice(2, ("logits", "tanh")))
    assert units(follow(two_exports(), found.advice[0]), "stem.weight") == [3, 3]


def test_an_output_layer_is_not_freed_by_leaving_it_out() -> None:
    found = axis(residual(), "logits.weight")
    assert found.cause == Cause("output", "logits", "it is tied to the output 'logits'")
    assert found.advice == ()


def test_a_barrier_beside_the_way() -> None:
    found = axis(unknown(side=True), "stem.weight")
    assert found.cause is not None
    assert (found.cause.kind, found.cause.node) == ("barrier", "Det 'odd'")
    assert found.advice == (Advice(2, ("logits",)),)
    assert units(follow(unknown(side=True), found.advice[0]), "stem.weight") == [3, 3]


def test_a_barrier_on_the_way_can_only_be_named() -> None:
    reason = "operators of the domain 'example.unknown' have no rule"
    found = axis(unknown(side=False), "stem.weight")
    assert found.cause == Cause("barrier", "Mystery 'odd'", reason)
    assert found.advice == ()
    behind = explained(unknown(side=False), "flat")
    assert behind.axes == ()
    assert behind.cause == Cause("barrier", "Mystery 'odd'", reason)


@pytest.mark.parametrize("name", ["thin.weight", "thin.bias", "thin"])
def test_fewer_classes_than_parts(name: str) -> None:
    found = axis(narrow(), name, 6, along=1 if name == "thin" else 0)
    assert found.cause == Cause("narrow", "Conv 'thin'", "its units move in 4 classes, too few for 6 parts", 4)
    assert found.advice == (Advice(4),)
    assert units(follow(narrow(), found.advice[0]), "thin.weight") == [1] * 4


def heads() -> ModelProto:
    """A parameter for each of 3 heads and 4 channels, multiplied into 12 units, which is the first that joins them."""
    n = Net(("x", ("N", 5)))
    h = n.op("Reshape", n.linear("x", 5, 12, name="wide"), n.ints(-1, 3, 4))
    h = n.op("ReduceSum", n.op("Mul", h, n.random("scale", 3, 4), name="scaled"), n.ints(2), keepdims=0)
    return n.model(n.linear(h, 3, 2, name="logits"), shape=("N", 2))


def gated() -> ModelProto:
    """A gate for each of 3 heads ties their 4 channels, before a parameter with both axes would tie them all."""
    n = Net(("x", ("N", 5)))
    h, gate = n.linear("x", 5, 12, name="wide"), n.linear("x", 5, 3, name="gate")
    h = n.op("Mul", n.op("Reshape", h, n.ints(-1, 3, 4)), n.op("Reshape", gate, n.ints(-1, 3, 1)), name="gated")
    h = n.op("Reshape", n.op("Mul", h, n.random("scale", 3, 4), name="scaled"), n.ints(-1, 12))
    return n.model(n.linear(h, 12, 2, name="logits"), shape=("N", 2))


@pytest.mark.parametrize(
    ("build", "name", "k", "classes"),
    [(heads, "wide.weight", 5, 1), (gated, "wide.weight", 5, 3), (narrow, "wide.weight", 13, 12)],
)
def test_a_layer_and_its_weight_have_as_many_classes(
    build: Callable[[], ModelProto], name: str, k: int, classes: int
) -> None:
    analysis = analyse(load(build()))
    cause = axis(build(), name, k).cause
    assert cause is not None
    assert cause.reason == f"its units move in {classes} class{'es' * (classes > 1)}, too few for {k} parts"
    (layer,) = [one for one in layers_of(analysis, decide(analysis, k), None, k) if one.node == cause.node]
    assert (layer.classes, layer.reason) == (classes, cause.reason)


def test_what_joins_the_units_of_too_few_classes_is_shown() -> None:
    found = axis(heads(), "wide.weight", 5)
    assert found.cause is not None
    assert found.cause.kind == "narrow"
    assert {step.node for step in found.chain} == {"Mul 'scaled'"}
    with pytest.raises(PartitionError, match=re.escape(found.cause.reason)):
        plan(analyse(load(heads())), 5)
    assert axis(heads(), "wide.weight", 3).parts == (4, 4, 4)


def test_a_duplicated_mix_and_the_parts_with_which_it_stands_once() -> None:
    found = explained(groups(), "norm", 4)
    (mixed,) = found.duplicated
    assert mixed.node == "GroupNormalization 'norm'"
    assert mixed.reason == "normalises over the channels of a group"
    assert follow(groups(), Advice(4)).duplicated == (mixed.node,)
    assert mixed.advice == (Advice(3),)
    assert follow(groups(), mixed.advice[0]).duplicated == ()
    (channels,) = [a for a in found.axes if a.axes == (1,)]
    assert (channels.parts, channels.undivided, channels.cause) == ((3,) * 4, 0, None)


def test_a_soft_tie_that_was_given_up() -> None:
    found = axis(shared_scale(), "scale", 4)
    assert found.cause == Cause("soft tie", "Mul 'scaled'", "the parameter is the same for several units")
    assert found.advice == (Advice(3),)
    assert units(follow(shared_scale(), Advice(4)), "scale") == [3] * 4
    assert units(follow(shared_scale(), found.advice[0]), "scale") == [1] * 3


def test_a_soft_tie_without_anything_to_drop() -> None:
    found = axis(narrow_groups(), "grouped.weight", 5)
    assert found.cause == Cause("soft tie", "Conv 'grouped'", "its groups are too narrow to divide")
    assert found.advice == (Advice(4),)
    assert units(follow(narrow_groups(), found.advice[0]), "grouped.weight") == [3] * 4


def test_an_operator_that_needs_its_units_whole() -> None:
    found = axis(chosen(), "stem.weight")
    assert found.cause == Cause("operator", "ArgMax 'winner'", "it returns positions along a divided axis")
    assert found.advice == (Advice(2, ("logits",)),)
    assert units(follow(chosen(), found.advice[0]), "stem.weight") == [3, 3]


def test_units_added_to_what_every_part_has() -> None:
    found = axis(with_input(), "other.weight")
    assert (found.undivided, found.parts) == (2, (3, 3))
    assert found.cause == Cause("shared", "Add 'sum'", "it meets what every part has")
    assert found.advice == ()


def test_how_a_layer_is_divided() -> None:
    found = axis(narrow(), "wide", along=1)
    assert (found.units, found.undivided, found.parts, found.classes) == (12, 0, (6, 6), 12)
    assert found.layer == "Conv 'wide'"
    assert found.together == ("wide.weight axis 0", "wide.bias axis 0", "thin.weight axis 1")
    assert (found.chain, found.cause, found.advice) == ((), None, ())


def test_a_soft_tie_that_holds_is_a_tie() -> None:
    """Odd channels go to the logits; the first, which a softmax mixes with the second, is an output."""
    n = Net(IMAGE)
    h = n.op("Reshape", n.conv("x", 2, 12, name="wide"), n.ints(0, 6, 2, 4, 4))
    h = n.op("Reshape", n.op("Softmax", h, axis=2, name="pairs"), n.ints(0, 12, 4, 4))
    odd = n.op("Slice", h, n.ints(1), n.ints(12), n.ints(1), n.ints(2), name="odd")
    one = n.op("Slice", h, n.ints(0), n.ints(1), n.ints(1), name="one")
    found = axis(classified(n, odd, 6, one), "odd", along=1)
    assert (found.units, found.undivided) == (6, 1)
    tie = ("Softmax 'pairs'", "normalises over units")
    assert [(step.node, step.reason) for step in found.chain] == [tie, tie]
    assert found.chain[0].source == "odd axis 1"
    assert found.cause == Cause("output", "one", "it is tied to the output 'one'")
    assert found.advice == (Advice(2, ("logits",)),)


def test_inputs_and_constants_hold_no_units() -> None:
    for name in ("x", "ints"):
        found = explained(shared_scale(), name)
        assert found.axes == ()
        assert found.cause is not None
        assert found.cause.kind == "input"


def test_a_table_that_no_contraction_makes_units_of() -> None:
    n = Net(("x", ("N", 6, 4, 4)))
    h = n.op("Add", "x", n.random("position", 6, 4, 4), name="placed")
    found = axis(classified(n, n.conv(h, 6, 6, name="stem")), "position")
    assert found.cause == Cause("shared", "Add 'placed'", "it meets what every part has")


@pytest.mark.parametrize(
    ("name", "k", "sentence"),
    [
        ("block3", 2, "net holds nothing called 'block3'; did you mean 'block2'"),
        ("zzz", 2, "net holds nothing called 'zzz'; name a node, a value or an initializer."),
        ("stem", 1, "K is 1; nothing is divided into fewer than 2 parts."),
    ],
)
def test_refused(name: str, k: int, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        explained(residual(), name, k)
    assert str(error.value).startswith(sentence)


NETWORKS: dict[str, Callable[[], ModelProto]] = {
    "residual": residual,
    "two exports": two_exports,
    "narrow": narrow,
    "groups": groups,
    "shared scale": shared_scale,
    "narrow groups": narrow_groups,
    "with input": with_input,
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("k", [2, 4])
def test_every_initializer_agrees_with_the_plan(name: str, k: int) -> None:
    analysis = analyse(load(NETWORKS[name]()))
    try:
        planned = plan(analysis, k)
    except PartitionError:
        planned = None
    for initializer in analysis.model.initializers:
        for found in why(analysis, initializer, k).axes:
            assert (found.cause is None) == (found.undivided == 0)
            assert sum(found.parts) == (found.units - found.undivided if found.parts else 0)
            if planned is None:
                assert not found.parts
            elif len(found.axes) == 1 and initializer in planned.by_name:
                held = units(planned, initializer, found.axes[0])
                shares = found.parts or (0,) * k
                assert held == [share + found.undivided for share in shares]


def test_the_command_tells_people_and_programs_the_same(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save_model(residual(), path)
    lines = [" ".join(line.split()) for line in run("inspect", path, "--why", "block2.bias").stdout.splitlines()]
    assert lines == [
        "block2.bias [6] in 2 parts",
        "",
        "axis 0: 6 units, none divided",
        "what is undivided is tied to by",
        "block2.bias axis 0 block2.weight axis 0 Conv 'block2'",
        "block2.weight axis 0 stem.weight axis 0 Add 'add2'",
        "held by features: it is tied to the output 'features'",
        "more of it is divided with --outputs logits",
    ]
    data = run_json("inspect", path, "--why", "block2.bias")
    assert data.keys() == {"model", "name", "shape", "k", "axes", "duplicated", "cause"}
    assert data["axes"][0]["cause"]["node"] == "features"
    assert data["axes"][0]["advice"] == [{"k": 2, "outputs": ["logits"]}]
    freed = run("inspect", path, "--why", "block2.bias", "--outputs", "logits").stdout
    assert "6 units, divided in 6 classes of Conv 'stem': 3 in parts 0 to 1, each" in freed


def test_of_what_moves_along_the_first_are_named(tmp_path: Path) -> None:
    n = Net(("x", ("N", 4)))
    h = n.linear("x", 4, 6, name="stem")
    for _ in range(5):
        h = n.op("Add", h, n.linear(n.op("Tanh", h), 6, 6, name="block"))
    path = tmp_path / "net.onnx"
    onnx.save_model(n.model(n.linear(h, 6, 2, name="y"), shape=("N", 2)), path)
    together = run_json("inspect", path, "--why", "stem.weight")["axes"][0]["together"]
    assert len(together) == 17
    (line,) = [
        line for line in run("inspect", path, "--why", "stem.weight").stdout.splitlines() if "move with them" in line
    ]
    assert line.strip() == f"these move with them: {', '.join(together[:8])} and 9 more"


def test_a_duplicated_mix_is_told(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save_model(groups(), path)
    lines = run("inspect", path, "-k", 4, "--why", "norm").stdout.splitlines()
    assert lines[1] == (
        "GroupNormalization 'norm' is duplicated (normalises over the channels of a group): each part has a copy over "
        "its own units"
    )
    assert lines[2] == "  it stands once with -k 3"


def test_nodes_without_names_are_called_by_their_first_output() -> None:
    model = residual()
    for node in model.graph.node:
        node.name = ""
    assert explained(model, "add1").name == "add1"
    renamed = residual()
    for node in renamed.graph.node:
        node.name = f"the {node.op_type} of {node.output[0]}"
    assert explained(renamed, "the Add of add1").name == "add1"
    np.testing.assert_equal(explained(renamed, "add1").axes[0].units, 6)
