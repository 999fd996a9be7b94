"""Contractions: which units meet, which are summed, and where new ones come into being."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpart import split, verify
from onnxpart.analysis.labels import Field
from onnxpart.analysis.op import Barrier
from onnxpart.analysis.rules.contraction import einsum_letters, place
from tests.networks.alone import Alone
from tests.networks.net import Net


def roots(alone: Alone) -> list[list[int]]:
    return [f.ravel().tolist() for f, _ in alone.op.labels.roots]


def test_a_product_with_a_weight_makes_units() -> None:
    alone = Alone("MatMul", [(2, 3)], [(3, 4)])
    x = alone.label(0, 1)
    rows, columns = alone.op.fields(1)
    ((out,),) = alone.run()
    assert alone.same(x.ravel(), rows.ravel())
    assert out.tolist() == columns.tolist()
    assert roots(alone) == [columns.ravel().tolist()]


@pytest.mark.parametrize("turned", [False, True])
def test_a_gemm_and_its_bias(turned: bool) -> None:
    alone = Alone("Gemm", [(2, 3)], [(4, 3) if turned else (3, 4), (4,)], transB=int(turned))
    x = alone.label(0, 1)
    summed, made = alone.op.fields(1)[:: -1 if turned else 1]
    ((out,),) = alone.run()
    assert alone.same(x.ravel(), summed.ravel())
    assert alone.same(out.ravel(), made.ravel())
    assert alone.same(out.ravel(), alone.op.fields(2)[0])
    assert alone.op.state.biases == {"w2"}


def test_units_beside_the_product_pass() -> None:
    alone = Alone("MatMul", [(5, 2, 3)], [(3, 4)])
    batch = alone.label(0, 0)
    fields = alone.run()[0]
    assert [f.shape for f in fields] == [(5, 1, 1), (1, 1, 4)]
    assert fields[0].tolist() == batch.tolist()


def test_a_product_of_activations_wants_what_it_sums_together() -> None:
    alone = Alone("MatMul", [(2, 3), (3, 4)])
    a, b = alone.label(0, 1), alone.label(1, 0)
    alone.run()
    assert alone.soft()[0] == "units are summed without a weight"
    assert alone.same(a.ravel(), b.ravel())


def test_a_convolution() -> None:
    alone = Alone("Conv", [(1, 3, 5, 5)], [(4, 3, 2, 2), (4,)])
    x = alone.label(0, 1)
    outputs, inputs = alone.op.fields(1)[:2]
    ((out,),) = alone.run()
    assert alone.same(x.ravel(), inputs.ravel())
    assert out.shape == (1, 4, 1, 1)
    assert alone.same(out.ravel(), outputs.ravel())
    assert alone.same(out.ravel(), alone.op.fields(2)[0])
    assert alone.op.state.weights["w"].outputs == (0,)


def test_the_group_of_a_depthwise_convolution_is_the_unit() -> None:
    alone = Alone("Conv", [(1, 4, 5, 5)], [(8, 1, 2, 2)], group=4)
    x = alone.label(0, 1)
    ((out,),) = alone.run()
    assert alone.units(out) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert alone.same(x.ravel(), out.ravel()[::2])
    assert roots(alone) == []


def test_channels_of_a_group_with_one_result_are_that_unit() -> None:
    alone = Alone("Conv", [(1, 6, 5, 5)], [(2, 3, 2, 2)], group=2)
    x = alone.label(0, 1)
    ((out,),) = alone.run()
    assert alone.units(x) == [0, 0, 0, 1, 1, 1]
    assert alone.same(out.ravel(), x.ravel()[::3])


def test_groups_are_told_to_the_plan() -> None:
    alone = Alone("Conv", [(1, 4, 5, 5)], [(6, 2, 2, 2)], group=2)
    x = alone.label(0, 1)
    ((out,),) = alone.run()
    (groups,) = alone.op.labels.groups
    assert groups.inputs is not None
    assert alone.same(groups.inputs.ravel(), x.ravel())
    assert groups.outputs.tolist() == out.reshape(2, 3).tolist()
    assert len(set(alone.units(out))) == 6


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("k", [2, 4])
def test_a_weight_that_groups_have_alike_is_divided_within_them(op_type: str, k: int) -> None:
    n = Net(("x", ("N", 5, 6)))
    h = n.op("Relu", n.op("Conv", "x", n.random("first", 12, 5, 1)))
    h = n.op("Relu", n.op(op_type, h, n.op("Tile", n.random("weight", 4, 4, 3), n.ints(3, 1, 1)), group=3))
    made = split(n.model(n.linear(n.op("ReduceMean", h, axes=[2], keepdims=0), 12, 2)), k, order="random")
    assert verify(made.analysis, made.plan).holds
    assert made.plan.by_name["weight"].part_shape(0) == (4 // k, 4 // k, 3)


def test_a_kernel_of_activations_has_no_rule() -> None:
    alone = Alone("Conv", [(1, 3, 5, 5), (4, 3, 2, 2)])
    alone.label(1, 0)
    with pytest.raises(Barrier, match="its kernel is computed from activations"):
        alone.run()


@pytest.mark.parametrize(
    ("equation", "ranks", "letters", "out"),
    [
        ("ij,jk->ik", [2, 2], ["ij", "jk"], "ik"),
        ("ij, jk", [2, 2], ["ij", "jk"], "ik"),
        ("...i,oi->...o", [3, 2], ["ABi", "oi"], "ABo"),
        ("...i,...i", [3, 2], ["ABi", "Bi"], "AB"),
        ("ba", [2], ["ba"], "ab"),
    ],
)
def test_letters_of_an_einsum(equation: str, ranks: list[int], letters: list[str], out: str) -> None:
    assert einsum_letters(equation, ranks) == (letters, out)


def test_a_diagonal_has_no_rule() -> None:
    with pytest.raises(Barrier, match="diagonal"):
        einsum_letters("ii->i", [2])


@st.composite
def placed(draw: st.DrawFn) -> tuple[Field, str, str]:
    """A field, the letters of its axes, and those of a result."""
    letters = "".join(draw(st.permutations("abcd"))[: draw(st.integers(1, 4))])
    out = "".join(draw(st.permutations("abcd")))
    shape = [draw(st.integers(1, 3)) for _ in letters]
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape), letters, out


@given(placed())
def test_a_field_is_seen_from_the_result(case: tuple[Field, str, str]) -> None:
    f, letters, out = case
    g = place(f, letters, out)
    assert g.tolist() == np.einsum(f"{letters}->{''.join(c for c in out if c in letters)}", f).reshape(g.shape).tolist()
    assert g.shape == tuple(f.shape[letters.index(c)] if c in letters else 1 for c in out)
