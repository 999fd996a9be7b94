"""What `onnxpart split` writes is right, or nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from models.golden import GOLDEN
from onnxpart import Split, analyse, growth, load, shallow, split
from onnxpart.errors import OnnxpartError, VerificationError
from onnxpart.inspection.sizes import measure
from onnxpart.merging.deepen import New, deepened
from onnxpart.storage.draft import Draft
from onnxpart.verification import check as module
from onnxpart.verification.check import Check, check, check_growth
from tests.networks.command import run, run_json
from tests.networks.deep import residual_mlp
from tests.networks.net import Net


def looked_up() -> ModelProto:
    """A table that is looked up at places computed from hidden units."""
    n = Net(("x", ("N", 7)))
    h = n.op("Abs", n.op("MatMul", "x", n.random("first", 7, 8)))
    places = n.op("Cast", n.op("Clip", h, n.number(0), n.number(4)), to=onnx.TensorProto.INT64)
    found = n.op("Gather", n.random("table", 5, 6), places)
    return n.model(
        n.op("MatMul", n.op("ReduceSum", found, n.ints(1), keepdims=0), n.random("last", 6, 3)), shape=("N", 3)
    )


def unknown() -> ModelProto:
    """A network that ONNX Runtime has no kernel for."""
    n = Net(("x", ("N", 4)))
    h = n.op("Relu", n.linear("x", 4, 8))
    made = n.linear(h, 8, 4)
    n.nodes.append(onnx.helper.make_node("Odd", [made], ["y"], name="odd", domain="nowhere"))
    return n.model("y", shape=("N", 4))


def checked(done: Split) -> Check:
    return check(done, measure(done.analysis, done.plan))


@pytest.mark.parametrize("name", ["chain", "lrn", "recurrent", "qkv", "scan"])
def test_what_is_right_passes(name: str) -> None:
    found = checked(split(GOLDEN[name](), 2))
    assert found.deviation is not None
    assert found.deviation < 1e-4
    assert "the whole computes the mean of its parts" in found.sentence


@pytest.mark.usefixtures("unguarded")
def test_what_is_wrong_is_an_error() -> None:
    with pytest.raises(VerificationError, match="a bug in onnxpart"):
        checked(split(looked_up(), 2))


@pytest.mark.usefixtures("unguarded")
def test_nothing_is_written_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(looked_up(), "m.onnx")
    assert "Nothing was written" in run("split", "m.onnx", "-k", 2, "-o", "parts", code=1).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    run("split", "m.onnx", "-k", 2, "-o", "parts", "--no-check")
    assert (tmp_path / "parts" / "part0.onnx").is_file()


def test_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(looked_up(), "m.onnx")
    assert "checked in ONNX Runtime" in run("split", "m.onnx", "-k", 2, "-o", "parts").stdout
    found = run_json("split", "m.onnx", "-k", 2, "-o", "more")
    assert found["check"]["deviation"] < 1e-4
    assert run_json("split", "m.onnx", "-k", 2, "-o", "other", "--no-check")["check"] is None


@pytest.mark.parametrize(
    ("limit", "words"), [("MOST_BYTES", "weights take more"), ("MOST_MACS", "multiply-accumulates")]
)
def test_what_is_too_large_is_left_out_and_said(limit: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, limit, 10)
    found = checked(split(GOLDEN["chain"](), 2))
    assert found.deviation is None
    assert words in found.sentence
    assert "onnxpart verify" in found.sentence


def test_what_cannot_run_is_said() -> None:
    found = checked(split(unknown(), 2))
    assert found.deviation is None
    assert "ONNX Runtime can't run the original model" in found.sentence


def test_a_branch_that_cannot_run_as_it_came_is_said() -> None:
    """ONNX Runtime loses a value that was cast to double and back, and is read by a branch: on some inputs only."""
    n = Net(("x", ("N", 4)), ("gate", ()))
    back = n.op("Cast", n.op("Cast", "x", to=onnx.TensorProto.DOUBLE), to=onnx.TensorProto.FLOAT)
    first, last = n.random("first", 4, 8), n.random("last", 8, 3)
    branches = {
        name: onnx.parser.parse_graph(
            f"{name} () => (float[N, 3] {name}_y) {{ {name}_a = MatMul ({source}, {first})"
            f" {name}_h = Tanh ({name}_a) {name}_y = MatMul ({name}_h, {last}) }}"
        )
        for name, source in (("then_branch", "x"), ("else_branch", back))
    }
    made = n.op("If", n.op("Less", "gate", n.number(0)), **branches)
    found = checked(split(n.model(made, shape=("N", 3)), 2))
    assert "ONNX Runtime can't run the original model" in found.sentence


def test_the_file_tells_whether_a_model_ran_as_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was rewritten may be what doesn't run, and then so do the parts not."""
    monkeypatch.chdir(tmp_path)
    onnx.save(looked_up(), "m.onnx")

    def rewritten(*_: object, **__: object) -> object:
        raise OnnxpartError("what was rewritten doesn't run")

    monkeypatch.setattr(module, "verify", rewritten)
    monkeypatch.setattr(module, "assemble", rewritten)
    assert "Nothing was written" in run("split", "m.onnx", "-k", 2, "-o", "parts", code=1).stderr
    assert not (tmp_path / "parts").exists()


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert "ONNX Runtime isn't installed" in checked(split(GOLDEN["chain"](), 2)).sentence


def grown(model: ModelProto, new: New = "zero") -> Check:
    """What is found of a model that grew from one block."""
    made, loaded = shallow(model, 1), load(model)
    draft = deepened(loaded, load(made), growth(loaded, made, new))
    return check_growth(analyse(loaded), Draft(made), draft)


def test_a_deep_network_computes_what_the_shallow_one_did() -> None:
    found = grown(residual_mlp())
    assert found.deviation is not None
    assert found.deviation <= 1e-5
    with pytest.raises(VerificationError, match="the deep network's outputs differ by"):
        grown(residual_mlp(), "copies")


@pytest.mark.parametrize("limit", ["MOST_BYTES", "MOST_ELEMENTS", "MOST_MACS"])
def test_what_grew_too_large_is_not_run(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, limit, 10)
    found = grown(residual_mlp(), "copies")
    assert found.deviation is None
    assert "not checked" in found.sentence


def test_all_symbols_have_two_sizes() -> None:
    """A part that is right at one length of a sequence alone is found, although the batch is fixed."""
    n = Net(("x", (2, "T", 4)))
    h = n.op("Tanh", n.op("MatMul", "x", n.random("first", 4, 6)))
    done = split(n.model(n.op("MatMul", h, n.random("last", 6, 3)), shape=(2, "T", 3)), 2)
    for draft in done.part_drafts:
        graph = draft.proto.graph
        first = graph.node[0]
        cut = onnx.helper.make_node("Slice", [first.output[0], "zero", "sixteen", "one"], ["cut"])
        for node in graph.node[1:]:
            node.input[:] = ["cut" if name == first.output[0] else name for name in node.input]
        graph.node.insert(1, cut)
        for name, value in (("zero", 0), ("sixteen", 16), ("one", 1)):
            graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    with pytest.raises(VerificationError):
        checked(done)
