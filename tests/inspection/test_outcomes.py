"""What is said to have become of layers and initializers."""

from __future__ import annotations

from models import BUILDERS
from onnxpart import analyse, load
from onnxpart.inspection import outcomes
from onnxpart.planning.partition import Partition
from onnxpart.planning.planner import partition


def made(k: int) -> Partition:
    return partition(analyse(load(BUILDERS["lenet"]())), k)


def test_layers_are_divided_or_say_why_not() -> None:
    assert outcomes.of_layers(made(2)) == ["divided"] * 3 + ["shared: output layer"]
    assert outcomes.of_layers(made(21))[0] == "not divided: its units move in 20 classes, too few for 21 parts"


def test_initializers_say_how_they_merge() -> None:
    rows = {row["name"]: row for row in outcomes.of_initializers(made(2).plan)}
    assert rows["fc1.weight"]["parts"] == [(250, 400)] * 2
    merging = {name: row["merging"] for name, row in rows.items()}
    assert merging["fc1.bias"] == "joined"
    assert merging["logits.weight"] == "joined, divided by K"
    assert merging["logits.bias"] == "shared: mean over the parts"
    assert merging["dropout.ratio"] == "constant"
