"""A model divided: parts, whole and plan, in memory and in a folder."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from models.golden import GOLDEN
from onnxpart import ModelError, PartitionError, Plan, UsageError, split
from onnxpart.emission.split import ORIGINAL, PLAN, WHOLE, part_file
from tests.networks.net import Net
from tests.networks.verified import split_holds


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    split(GOLDEN["chain"](), 3).save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {PLAN, WHOLE, *(part_file(p) for p in range(3))}
    split(GOLDEN["lrn"](), 2).save(tmp_path / "more")
    assert (tmp_path / "more" / ORIGINAL).is_file()


def test_what_is_written_is_what_is_in_memory(tmp_path: Path) -> None:
    done = split(GOLDEN["chain"](), 2)
    done.save(tmp_path / "out")
    for p, part in enumerate(done.parts):
        assert onnx.load(tmp_path / "out" / part_file(p)) == part
    assert onnx.load(tmp_path / "out" / WHOLE) == done.whole
    assert Plan.from_json((tmp_path / "out" / PLAN).read_text()) == done.plan


def test_what_exists_is_replaced_by_force_alone(tmp_path: Path) -> None:
    split(GOLDEN["chain"](), 2).save(tmp_path / "out")
    with pytest.raises(ModelError, match="exists already"):
        split(GOLDEN["chain"](), 3).save(tmp_path / "out")
    split(GOLDEN["chain"](), 3).save(tmp_path / "out", force=True)
    assert (tmp_path / "out" / part_file(2)).is_file()


@pytest.mark.parametrize("init", ["he", "glorot", "scaled"])
def test_fresh_weights_differ_by_part_and_seed(init: str) -> None:
    first, again, other = (split(GOLDEN["chain"](), 2, init=init, seed=seed) for seed in (0, 0, 1))
    assert first.parts == again.parts
    assert first.parts[0] != other.parts[0]
    assert first.parts[0].graph.initializer[0].raw_data != first.parts[1].graph.initializer[0].raw_data


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="initialisation 'zeros' is unknown"):
        split(GOLDEN["chain"](), 2, init="zeros")
    with pytest.raises(UsageError, match="at least 1 part"):
        split(GOLDEN["chain"](), 0)
    with pytest.raises(PartitionError):
        split(GOLDEN["chain"](), 100)


def test_what_is_to_stay_undivided_does() -> None:
    """With it the units that it reads and gives; the layers around are divided elsewhere."""
    n = Net(("x", ("N", 4)))
    h = "x"
    for i, (a, b) in enumerate([(4, 8), (8, 8), (8, 8), (8, 8), (8, 3)]):
        h = n.linear(n.op("Relu", h) if i else h, a, b, name=f"l{i}")
    done = split(n.model(h, shape=("N", 3)), 2, undivided=["l1.weight"])
    shapes = {name: planned.part_shape(0) for name, planned in done.plan.by_name.items() if name.endswith("weight")}
    assert list(shapes.values()) == [(8, 4), (8, 8), (4, 8), (4, 4), (3, 4)]
    assert split_holds(done)
    with pytest.raises(PartitionError, match=r"'l1.weight' is to stay undivided"):
        split(n.model(h, shape=("N", 3)), 2, undivided=["l1.weight", "l3.weight"])
    with pytest.raises(UsageError, match="net has no initializer 'l9' to leave undivided; check the name"):
        split(n.model(h, shape=("N", 3)), 2, undivided=["l9"])
