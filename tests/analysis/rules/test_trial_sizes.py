"""Values that depend on a symbolic dimension are no constants: parts compute them, or the network is refused.

Each network takes a batch of any size; parts and whole are compared at sizes that the analysis hasn't tried.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import numpy as np
import pytest
from onnx import ModelProto

from onnxpart import OnnxpartError, PartitionError, split, verify
from onnxpart.analysis.op import Op
from onnxpart.ir.shapes import Shapes
from tests.networks.ensemble import deviation
from tests.networks.net import Net

FEATURES, UNITS = 6, 8
Outcome = Literal["divided", "refused"]


def batch(n: Net) -> str:
    """The batch size, int64 []."""
    return n.op("Squeeze", n.op("Shape", "x", start=0, end=1))


def vector(n: Net, *values: str | int) -> str:
    """Integers one behind the other, some of them computed."""
    pieces = [n.ints(v) if isinstance(v, int) else n.op("Reshape", v, n.ints(1)) for v in values]
    return n.op("Concat", *pieces, axis=0)


def strided(n: Net, h: str, shift: str = "") -> str:
    """Rows looked up in the flat tensor, by positions computed from the batch size; `shift` turns the units."""
    zero, one = n.array("zero", np.array(0)), n.array("one", np.array(1))
    starts = n.op("Mul", n.op("Range", zero, batch(n), one), n.array("width", np.array(UNITS)))
    units = n.array("units", np.arange(UNITS)[None])
    units = n.op("Mod", n.op("Add", units, shift), n.array("all", np.array(UNITS))) if shift else units
    places = n.op("Add", n.op("Unsqueeze", starts, n.ints(1)), units)
    return n.op("Gather", n.op("Reshape", h, n.ints(-1)), places)


def flat_slice(n: Net, h: str) -> str:
    """All of the flat tensor, up to an end computed from the batch size."""
    flat = n.op("Reshape", h, n.ints(-1))
    end = n.op("Mul", vector(n, batch(n)), n.ints(UNITS))
    return n.op("Reshape", n.op("Slice", flat, n.ints(0), end, n.ints(0)), n.ints(-1, UNITS))


def rows(n: Net, h: str) -> str:
    """All rows, up to the batch size, and half of the units."""
    kept = n.op("Slice", h, n.ints(0, 0), vector(n, batch(n), UNITS // 2), n.ints(0, 1))
    return n.op("Concat", kept, kept, axis=1)


def varying_slice(n: Net, h: str) -> str:
    """As many units as there are rows, then padded to all."""
    kept = n.op("Slice", h, n.ints(0), vector(n, n.op("Min", batch(n), n.array("most", np.array(UNITS)))), n.ints(1))
    return n.op("CenterCropPad", kept, n.ints(UNITS), axes=[1])


def padded(n: Net, h: str) -> str:
    """As many rows more as there are, cut off again."""
    more = n.op("Pad", h, vector(n, 0, 0, batch(n), 0))
    return n.op("Slice", more, n.ints(0), vector(n, batch(n)), n.ints(0))


def padded_units(n: Net, h: str) -> str:
    """As many units more as there are rows, cut off again."""
    more = n.op("Pad", h, vector(n, 0, 0, 0, batch(n)))
    return n.op("Slice", more, n.ints(0), n.ints(UNITS), n.ints(1))


def halves(n: Net, h: str) -> str:
    """The flat tensor in two pieces, of sizes computed from the batch size."""
    flat = n.op("Reshape", h, n.ints(-1))
    half = n.op("Mul", batch(n), n.array("half", np.array(UNITS // 2)))
    pieces = n.ops("Split", flat, vector(n, half, half), count=2, axis=0)
    return n.op("Reshape", n.op("Concat", pieces[1], pieces[0], axis=0), n.ints(-1, UNITS))


def repeated(n: Net, h: str) -> str:
    """Each row as often as there are rows, the first of all copies."""
    copies = n.op("Tile", h, vector(n, batch(n), 1))
    return n.op("Slice", copies, n.ints(0), vector(n, batch(n)), n.ints(0))


def turned(n: Net, h: str) -> str:
    """Units shifted by the batch size: those in front come behind."""
    at = vector(n, n.op("Mod", batch(n), n.array("all", np.array(UNITS))))
    behind = n.op("Slice", h, at, n.ints(UNITS), n.ints(1))
    return n.op("Concat", behind, n.op("Slice", h, n.ints(0), at, n.ints(1)), axis=1)


def one_row(n: Net, h: str) -> str:
    """Each row plus the last one, which a computed position selects."""
    last = n.op("Sub", batch(n), n.array("one", np.array(1)))
    return n.op("Add", h, n.op("Gather", h, vector(n, last), axis=0))


def one_unit(n: Net, h: str) -> str:
    """All units plus the one at a computed position."""
    at = n.op("Mod", batch(n), n.array("all", np.array(UNITS)))
    return n.op("Add", h, n.op("Gather", h, vector(n, at), axis=1))


CASES: dict[str, tuple[Callable[[Net, str], str], Outcome]] = {
    "rows of the flat tensor": (strided, "divided"),
    "rows of the flat tensor, units shifted": (lambda n, h: strided(n, h, batch(n)), "refused"),
    "a slice of the flat tensor": (flat_slice, "refused"),
    "a slice of rows and units": (rows, "divided"),
    "a slice of units by the batch size": (varying_slice, "refused"),
    "padded rows": (padded, "divided"),
    "padded units": (padded_units, "refused"),
    "pieces of the flat tensor": (halves, "refused"),
    "copies": (repeated, "divided"),
    "units shifted": (turned, "refused"),
    "one row": (one_row, "divided"),
    "one unit": (one_unit, "refused"),
}


def network(name: str) -> ModelProto:
    n = Net(("x", ("N", FEATURES)), opset=18)
    h = CASES[name][0](n, n.op("Tanh", n.linear("x", FEATURES, UNITS, name="first")))
    return n.model(n.op("MatMul", h, n.random("last", UNITS, 3)), shape=("N", 3))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_at_sizes_that_nobody_tried(name: str, k: int) -> None:
    model = network(name)
    try:
        done = split(model, k)
    except PartitionError:
        assert CASES[name][1] == "refused"
        return
    assert CASES[name][1] == "divided"
    assert verify(done.analysis, done.plan).holds
    for size in (1, 5, 11):
        x = np.random.default_rng(size).standard_normal((size, FEATURES)).astype(np.float32)
        assert deviation(done, {"x": x}) < 1e-5


def constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rules take what they see at trial sizes for constants."""
    monkeypatch.setattr(Op, "dynamic", lambda op, i: (False,) * len(op.shape(i)))
    monkeypatch.setattr(Shapes, "dynamic_value", lambda shapes, name: np.zeros_like(shapes.value(name), bool))


@pytest.mark.parametrize("name", ["rows of the flat tensor", "pieces of the flat tensor", "units shifted"])
def test_a_trial_value_taken_for_a_constant_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    constant(monkeypatch)
    done = split(network(name), 2)
    with suppress(OnnxpartError):  # ONNX Runtime may not even run the parts
        assert not verify(done.analysis, done.plan).holds
