"""Graphviz's text has each card that the page draws, its units in colours, and names that are text."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest

from models import BUILDERS
from onnxpart import analyse, load
from onnxpart.analysis.repeats import Block
from onnxpart.inspection.sizes import measure
from onnxpart.page.content import content
from onnxpart.page.dot import COLOURS, SHARED, dot
from onnxpart.planning.planner import partition
from scripts.page.examples import MARKUP
from tests.networks.command import run, run_json


def drawn(model: onnx.ModelProto, k: int = 2) -> str:
    made = partition(analyse(load(model)), k)
    return dot(content(made, measure(made.analysis, made.plan)))


def labels(text: str) -> dict[int, ElementTree.Element]:
    found = re.findall(r"^(\d+) \[label=<(.*)>\];$", text, re.MULTILINE)
    return {int(number): ElementTree.fromstring(label) for number, label in found}


def bar(label: ElementTree.Element) -> list[tuple[str, int]]:
    return [
        (cell.attrib["BGCOLOR"], int(cell.attrib["WIDTH"])) for cell in label.iter("TD") if "BGCOLOR" in cell.attrib
    ]


def test_units_are_divided_to_scale() -> None:
    text = drawn(BUILDERS["lenet"]())
    x, conv1, _, fc1, logits, _ = labels(text).values()
    assert [color for color, _ in bar(x)] in ([], [SHARED])
    assert bar(fc1) == [(COLOURS[0], 75), (COLOURS[1], 75)]
    assert bar(conv1) == [(COLOURS[0], 3), (COLOURS[1], 3)]
    assert {color for color, _ in bar(logits)} == set(COLOURS[:2])
    assert "divided: 250 + 250" in "".join(fc1.itertext())
    assert re.findall(r"^(\d+) -> (\d+);$", text, re.MULTILINE) == [(str(n), str(n + 1)) for n in range(5)]


def test_what_repeats_is_drawn_once() -> None:
    made = partition(analyse(load(BUILDERS["light_resnet50"]())), 2)
    shown = content(made, measure(made.analysis, made.plan))
    blocks = [item for item in shown.items if isinstance(item, Block)]
    text = dot(shown)
    assert blocks
    assert all(f'label="{block.count} times"' in text for block in blocks)
    assert len(labels(text)) < len(shown.cards)
    ends = {int(end) for pair in re.findall(r"^(\d+) -> (\d+);$", text, re.MULTILINE) for end in pair}
    assert ends == labels(text).keys()
    assert text.count("{") == text.count("}")


def test_names_are_text() -> None:
    model = BUILDERS["lenet"]()
    model.graph.node[0].name = MARKUP + "\x01&"
    label = labels(drawn(model))[1]
    assert MARKUP + "�&" in "".join(label.itertext())
    assert {element.tag for element in label.iter()} == {"TABLE", "TR", "TD", "B"}


def test_the_command_writes_it_and_replaces_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save_model(BUILDERS["lenet"](), "lenet.onnx")
    assert "wrote the graph lenet.dot" in run("inspect", "lenet.onnx", "--dot", "lenet.dot").stdout
    before = Path("lenet.dot").read_bytes()
    assert run_json("inspect", "lenet.onnx", "--dot", "lenet.dot")["graph"] == "lenet.dot"
    assert Path("lenet.dot").read_bytes() == before
    run("inspect", "lenet.onnx", "--dot", "lenet.svg", code=2)
    assert not Path("lenet.svg").exists()
