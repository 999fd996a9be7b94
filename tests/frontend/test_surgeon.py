"""Graphs of onnx-graphsurgeon: nothing is lost on the way there and back, and the guide's recipe does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models import BUILDERS
from models.golden import GOLDEN
from onnxpart import ModelError, arrays, merge, split, surgeon, verify
from onnxpart.ir.protos import metadata_of
from onnxpart.planning.plan import METADATA, Plan
from onnxpart.storage.onnx_file import save
from tests.networks.running import run_onnx

GUIDE = (Path(__file__).parents[2] / ".github" / "docs" / "guide.md").read_text(encoding="utf-8")


def described() -> ModelProto:
    """A network in which everything that can has metadata and a description."""
    model = GOLDEN["scan"]()
    helper.set_model_props(model, {"author": "A"})
    model.domain, model.model_version, model.doc_string = "example", 3, "a cell"
    graph = model.graph
    for entry in (graph.node[0], graph.input[0], graph.output[0], *graph.initializer):
        entry.doc_string = f"of {entry.name}"
        entry.metadata_props.add(key="made", value=f"by {entry.name}")
    return model


def there_and_back(model: ModelProto) -> ModelProto:
    return surgeon.model_of(surgeon.graph_of(model), model)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_model_comes_back_as_it_was(name: str) -> None:
    model = GOLDEN[name]()
    before = model.SerializeToString()
    back = there_and_back(model)
    assert model.SerializeToString() == before
    for field in ("node", "input", "output", "value_info"):
        assert getattr(back.graph, field) == getattr(model.graph, field), field
    assert {t.name: t for t in back.graph.initializer} == {t.name: t for t in model.graph.initializer}
    assert (back.ir_version, [*back.opset_import]) == (model.ir_version, [*model.opset_import])


def test_metadata_and_descriptions_stay() -> None:
    model = described()
    dropped = gs.export_onnx(gs.import_onnx(described()))
    assert not dropped.metadata_props
    assert not dropped.graph.node[0].metadata_props
    back = there_and_back(model)
    assert (metadata_of(back), back.domain, back.model_version, back.doc_string) == (
        {"author": "A"},
        "example",
        3,
        "a cell",
    )
    assert back.graph.node == model.graph.node
    assert back.graph.input == model.graph.input
    first = {t.name: t for t in back.graph.initializer}[model.graph.initializer[0].name]
    assert first == model.graph.initializer[0]


def test_a_weight_that_was_edited_keeps_its_description() -> None:
    model, name = described(), "seen.weight"
    graph = surgeon.graph_of(model)
    (body,) = [node.attrs["body"] for node in graph.nodes if node.op == "Scan"]
    body.tensors()[name].values = np.zeros((5, 4), np.float32)
    (edited,) = [t for t in surgeon.model_of(graph, model).graph.initializer if t.name == name]
    assert not numpy_helper.to_array(edited).any()
    assert edited.doc_string == f"of {name}"


def test_parts_keep_their_plan_and_merge() -> None:
    done = split(BUILDERS["lenet"](), 2)
    parts = [there_and_back(part) for part in done.parts]
    assert [metadata_of(part) for part in parts] == [metadata_of(part) for part in done.parts]
    assert Plan.from_json(metadata_of(parts[0])[METADATA]) == done.plan
    whole = merge(done.plan, [arrays(part) for part in parts])
    expected = merge(done.plan, [arrays(part) for part in done.parts])
    assert all(np.array_equal(whole[name], array) for name, array in expected.items())
    assert verify(done.analysis, done.plan, parts=parts, whole=there_and_back(done.whole)).holds


def test_external_data_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(BUILDERS["lenet"](), path, save_as_external_data=True, size_threshold=0)
    back = surgeon.model_of(surgeon.graph_of(path), path)
    assert back.graph.initializer == BUILDERS["lenet"]().graph.initializer


def test_what_graphsurgeon_cannot_hold_is_refused() -> None:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    none = helper.make_node("Optional", [], ["nothing"], name="none", type=helper.make_optional_type_proto(kind))
    some = helper.make_node("OptionalHasElement", ["nothing"], ["y"])
    y = helper.make_tensor_value_info("y", TensorProto.BOOL, [])
    model = helper.make_model(
        helper.make_graph([none, some], "g", [], [y]), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    with pytest.raises(ModelError, match=r"can't hold the node 'none' \(Optional\) as it is; edit the model with onnx"):
        surgeon.graph_of(model)


def test_a_graph_that_is_broken_is_refused() -> None:
    model = GOLDEN["chain"]()
    graph = surgeon.graph_of(model)
    graph.outputs[0].dtype = None
    with pytest.raises(ModelError, match="can't export the graph"):
        surgeon.model_of(graph, model)


def test_the_recipe_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lines,) = re.findall(r"^## Editing the graph\n.*?^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    lenet = BUILDERS["lenet"]()
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 1, 28, 28])
    cast = helper.make_node("Cast", ["pixels"], [lenet.graph.input[0].name], "cast", to=TensorProto.FLOAT)
    softmax = helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1)
    nodes = [cast, *lenet.graph.node, softmax]
    for field, values in (("node", nodes), ("input", [pixels])):
        lenet.graph.ClearField(field)
        getattr(lenet.graph, field).extend(values)
    lenet.graph.output[0].name = "probabilities"
    save(lenet, "served.onnx")
    exec(lines, {})
    result = onnx.load_model("merged_served.onnx")
    feed = np.random.default_rng(0).integers(0, 255, (3, 1, 28, 28), dtype=np.uint8)
    (found,) = run_onnx(result, {"pixels": feed})
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
