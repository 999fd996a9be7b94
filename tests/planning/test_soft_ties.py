"""Which soft ties hold: whole heads rather than one copy of a table that all heads read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto

from onnxpart import Plan, load, split, verify
from onnxpart.planning.plan import from_ranges
from tests.networks.net import Net

STEPS, DIM = 5, 4
TABLES = frozenset(("cos", "sin"))


def rotary(heads: int, pairs: int) -> ModelProto:
    """Attention whose queries and keys are rotated by the same angles in all heads; `heads` // `pairs` share a key."""
    n = Net(("x", ("N", STEPS, 3)))
    width = heads * DIM
    h = n.op("Tanh", n.op("MatMul", "x", n.random("embedding", 3, width)))
    angles = (np.arange(STEPS)[:, None] * np.tile(np.arange(1, DIM // 2 + 1), 2)).astype(np.float32)
    cos, sin = n.array("cos", np.cos(angles)), n.array("sin", np.sin(angles))

    def projected(name: str, count: int) -> str:
        flat = n.op("MatMul", h, n.random(name, width, count * DIM))
        return n.op("Transpose", n.op("Reshape", flat, n.ints(0, STEPS, count, DIM)), perm=[0, 2, 1, 3])

    def rotated(v: str) -> str:
        a, b = n.ops("Split", v, n.ints(DIM // 2, DIM // 2), count=2, axis=3)
        turned = n.op("Concat", n.op("Neg", b), a, axis=3)
        return n.op("Add", n.op("Mul", v, cos), n.op("Mul", turned, sin))

    def repeated(v: str) -> str:
        wide = n.op("Expand", n.op("Unsqueeze", v, n.ints(2)), n.ints(1, 1, heads // pairs, 1, 1))
        return n.op("Reshape", wide, n.ints(0, heads, STEPS, DIM))

    q, k, v = rotated(projected("q", heads)), rotated(projected("k", pairs)), projected("v", pairs)
    scores = n.op("MatMul", q, n.op("Transpose", repeated(k), perm=[0, 1, 3, 2]))
    mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1), repeated(v))
    joined = n.op("Reshape", n.op("Transpose", mixed, perm=[0, 2, 1, 3]), n.ints(0, STEPS, width))
    out = n.op("Add", h, n.op("MatMul", joined, n.random("joined", width, width)))
    return n.model(n.op("MatMul", n.op("Tanh", out), n.random("y", width, 3)), shape=("N", STEPS, 3))


def columns(planned: Plan, name: str) -> list[list[int]]:
    """Columns of a weight that each part keeps."""
    return [list(from_ranges(block[1] or ())) for (block,) in planned.by_name[name].blocks]


@pytest.mark.parametrize("constant", [True, False], ids=["constants", "parameters"])
@pytest.mark.parametrize(("heads", "pairs", "k"), [(4, 4, 2), (4, 4, 3), (4, 4, 4), (4, 2, 2), (2, 2, 2)])
def test_a_part_has_whole_heads(heads: int, pairs: int, k: int, constant: bool) -> None:
    model = load(rotary(heads, pairs))
    done = split(replace(model, constants=TABLES) if constant else model, k)
    for name in "qkv":
        for kept in columns(done.plan, name):
            found = np.bincount(np.asarray(kept) // DIM)
            assert set(found[found > 0]) == {DIM}
    assert not done.plan.duplicated
    assert set(done.plan.replicated) == (set() if constant else TABLES)
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds


def test_one_head_is_divided_within() -> None:
    """There is no other way: the pairs that are rotated, each with its own angle."""
    done = split(rotary(1, 1), 2)
    assert columns(done.plan, "q") == [[0, 2], [1, 3]]
    assert not done.plan.replicated
    assert len(done.plan.duplicated) == 1
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds


def test_a_grid_that_hangs_on_a_duplicated_mix_is_shared() -> None:
    """Rows of units beside rows of a product that each part has its own of: no part could hold its columns alone."""
    n = Net(("x", ("N", STEPS, 3)))
    h = n.op("Tanh", n.op("MatMul", "x", n.random("a", 3, 7)))
    mixed = n.op("Concat", h, n.op("MatMul", h, n.op("Transpose", h, perm=[0, 2, 1])), axis=2)
    wide = n.op("MatMul", mixed, n.random("b", 12, 12))
    rows = n.op("Concat", wide, wide, mixed, axis=1)
    n.op("MatMul", rows, n.random("y", 12, 1), name="first")
    n.op("MatMul", n.op("Tanh", n.op("MatMul", "x", n.random("c", 3, 6))), n.random("z", 6, 2), name="second")
    model = load(n.model("first", "second", shape={"first": ("N", 3 * STEPS, 1), "second": ("N", STEPS, 2)}))
    for k in (2, 3):
        done = split(model, k)
        assert done.plan.by_name["b"].part_shape(0) == (12, 12)
        assert done.plan.by_name["c"].part_shape(0) == (3, 6 // k)
        assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds


@pytest.mark.parametrize("k", [2, 3])
def test_a_token_of_another_layer_beside_the_others_is_no_class_of_its_own(k: int) -> None:
    """A norm over each token, of which the first is read, could leave that to one part and all the rest to another."""
    n = Net(("x", ("N", STEPS, 3)))
    patches = n.op("Tanh", n.op("MatMul", "x", n.random("a", 3, 6)))
    token = n.op("MatMul", n.op("Tanh", n.op("MatMul", n.op("ReduceMean", "x", axes=[1]), n.random("b", 3, 6))), "c")
    n.random("c", 6, 6)
    scaled = n.op("LayerNormalization", n.op("Concat", token, patches, axis=1), n.positive("scale", 6), name="norm")
    first = n.op("Slice", scaled, n.ints(0), n.ints(1), n.ints(1))
    done = split(n.model(n.op("MatMul", first, n.random("y", 6, 2)), shape=("N", 1, 2)), k)
    assert all(done.plan.by_name[name].part_shape(0)[1] == 6 // k for name in "abc")
    assert done.plan.by_name["scale"].part_shape(0) == (6 // k,)
    assert done.plan.duplicated == ("LayerNormalization 'norm'",)
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds


@pytest.mark.parametrize("k", [2, 3])
def test_a_token_that_goes_on_by_itself_comes_back_to_the_others(k: int) -> None:
    """Class attention: the token alone is updated, and stands beside the others again, twice."""
    n = Net(("x", ("N", STEPS, 3)))
    h = n.op("MatMul", "x", n.random("a", 3, 6))
    for block in ("b", "c"):
        rest = n.op("Slice", h, n.ints(1), n.ints(STEPS), n.ints(1))
        token = n.op("MatMul", n.op("Tanh", n.op("ReduceMean", h, axes=[1])), n.random(block, 6, 6))
        h = n.op("Add", h, n.op("Concat", token, rest, axis=1))
        token = n.op("LayerNormalization", n.op("Slice", h, n.ints(0), n.ints(1), n.ints(1)), n.positive("scale", 6))
        h = n.op("Concat", token, n.op("Slice", h, n.ints(1), n.ints(STEPS), n.ints(1)), axis=1)
    done = split(n.model(n.op("MatMul", n.op("Tanh", h), n.random("y", 6, 2)), shape=("N", STEPS, 2)), k)
    assert all(done.plan.by_name[name].part_shape(0)[1] == 6 // k for name in "abc")
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds
