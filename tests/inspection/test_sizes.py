"""Sizes of the whole and of its parts."""

import numpy as np
import pytest

from models import BUILDERS, lenet
from models.builder import GraphBuilder, parameter_count
from onnxpart import split
from onnxpart.cli.tables import human_bytes
from onnxpart.inspection.sizes import Size, measure


@pytest.mark.parametrize(("k", "count"), [(1, 431_080), (2, 109_295), (5, 18_224), (10, 4_867)])
def test_table_1(k: int, count: int) -> None:
    done = split(lenet(), k)
    sizes = measure(done.analysis, done.plan)
    fc1, logits = 500 * 800, 500 * 10
    assert sizes.whole == Size(431_080, 20 * 24 * 24 * 25 + 50 * 8 * 8 * 500 + fc1 + logits, 4 * 431_080)
    macs = 20 // k * 24 * 24 * 25 + 50 // k * 8 * 8 * 500 // k + fc1 // k**2 + logits // k
    assert sizes.parts == (Size(count, macs, 4 * count),) * k


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in ("refused", "unknown_op")][:20])
def test_parts_are_as_large_as_their_files(name: str) -> None:
    done = split(BUILDERS[name](), 2)
    sizes = measure(done.analysis, done.plan)
    constants = {i.name for i in done.plan.initializers if i.constant and i.shape}
    for part, size in zip(done.parts, sizes.parts, strict=True):
        held = sum(int(np.prod(t.dims)) for t in part.graph.initializer if t.name in constants)
        assert size.parameters == parameter_count(part) - held
        assert size.macs < sizes.whole.macs


def test_every_contraction() -> None:
    g = GraphBuilder("contractions")
    x = g.input("x", "N", 4, 5)
    h = g.node("MatMul", "product", x, g.weight("product.weight", 5, 6, fan_in=5))
    h = g.node("Einsum", "einsum", h, g.weight("einsum.weight", 6, 8, fan_in=6), equation="nti,io->not")
    h = g.node("ConvTranspose", "up", h, g.weight("up.weight", 8, 2, 3, fan_in=8), group=2, kernel_shape=[3])
    flat = g.node("Flatten", "flat", h, axis=1)
    y = g.node("Gemm", "y", flat, g.weight("y.weight", 24, 3, fan_in=24))
    done = split(g.build({y: ("N", 3)}), 2)
    sizes = measure(done.analysis, done.plan)
    assert [o.whole for o in sizes.operators] == [4 * 5 * 6, 4 * 6 * 8, 8 * 4 * 2 * 3, 24 * 3]
    assert [o.parts for o in sizes.operators] == [
        (4 * 5 * 3,) * 2,
        (4 * 3 * 4,) * 2,
        (4 * 4 * 1 * 3,) * 2,
        (36,) * 2,
    ]


def test_a_fixed_batch_is_not_divided_out() -> None:
    g = GraphBuilder("fixed")
    h = g.relu("relu", g.linear("fc", g.input("x", 8, 5), (5, 6)))
    done = split(g.build({g.linear("y", h, (6, 3)): (8, 3)}), 2)
    assert measure(done.analysis, done.plan).whole.macs == 8 * (5 * 6 + 6 * 3)


def test_human_bytes() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1024, 3 << 20, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.0 MiB",
        "5.0 TiB",
    ]


def test_a_body_counts_as_often_as_it_is_run() -> None:
    """The cell of 4 units runs 3 times over a batch of 16, the trial value."""
    done = split(BUILDERS["scan"](), 2)
    sizes = measure(done.analysis, done.plan)
    assert sizes.whole.macs == 3 * 16 * (5 * 4 + 4 * 4 + 4 * 3)
    assert [size.macs for size in sizes.parts] == [3 * 16 * (5 * 2 + 2 * 2 + 2 * 3)] * 2
