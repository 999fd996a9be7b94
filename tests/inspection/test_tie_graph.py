"""The shortest way from a unit to what holds it."""

from __future__ import annotations

from onnx import ModelProto

from onnxpart import analyse, load
from onnxpart.inspection.tie_graph import Cause, Step, Ties, along
from tests.networks.net import Net


def ties(model: ModelProto, k: int = 2) -> Ties:
    return Ties(analyse(load(model)), k)


def chain(found: Ties, name: str, axis: int = 0) -> tuple[tuple[Step, ...], Cause]:
    """What holds the units of an initializer along an axis."""
    field = found.analysis.fields(name)[axis]
    return found.chain(field.ravel(), along(name, field))


def perceptron(width: int) -> ModelProto:
    """x ``[N, 5]``, a layer ``a``, one of 6 units ``b``, 3 outputs ``y``."""
    n = Net(("x", ("N", 5)))
    h = n.op("Relu", n.linear("x", 5, width, name="a"))
    h = n.op("Tanh", n.linear(h, width, 6, name="b"))
    return n.model(n.linear(h, 6, 3, name="y"), shape=("N", 3))


def test_an_output_holds_its_own_units() -> None:
    assert chain(ties(perceptron(6)), "y.weight") == ((), Cause("output", "y", "it is tied to the output 'y'"))


def test_a_layer_of_too_few_classes() -> None:
    steps, cause = chain(ties(perceptron(3), k=4), "a.weight")
    assert steps == ()
    assert cause == Cause("narrow", "Gemm 'a'", "its units move in 3 classes, too few for 4 parts", 3)


def test_one_tie_between_a_layer_and_an_output() -> None:
    n = Net(("x", ("N", 5)))
    h = n.op("Relu", n.linear("x", 5, 3, name="a"))
    h = n.op("Tanh", n.op("Add", h, n.linear(h, 3, 3, name="b"), name="sum"), name="features")
    steps, cause = chain(ties(n.model(h, n.linear(h, 3, 2, name="y"))), "b.weight")
    assert steps == (Step("Add 'sum'", "b.weight axis 0", "a.weight axis 0"),)
    assert cause == Cause("output", "features", "it is tied to the output 'features'")


def test_a_barrier_is_named_with_its_reason() -> None:
    n = Net(("x", (4, 5)))
    square = n.op("MatMul", n.op("Transpose", n.linear("x", 5, 6, name="a")), n.linear("x", 5, 6, name="b"))
    h = n.op("Det", square, name="det")
    found = ties(n.model(n.op("Mul", h, n.linear("x", 5, 3, name="y"))))
    _, cause = chain(found, "a.weight")
    assert (cause.kind, cause.node) == ("barrier", "Det 'det'")


def test_what_every_part_has_is_held_by_nothing_else() -> None:
    found = ties(perceptron(6))
    shared = found.analysis.fields("a.weight")[0].ravel() * 0
    assert found.chain(shared, "x") == ((), Cause("shared", "", "it comes from what every part has"))


def test_names() -> None:
    found = ties(perceptron(6))
    assert [along("w", f) for f in found.analysis.fields("a.weight")] == ["w axis 0", "w axis 1"]
    assert (found.title(0), found.title(-1)) == ("Gemm 'a'", "the graph")
