"""Models in ONNX Runtime: outputs by name, other weights than a model's own, and refusals in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxpart import OnnxpartError
from onnxpart.verification import runtime
from onnxpart.verification.runtime import Session, assemble
from tests.networks.net import Array, Net

X = np.asarray([[1.0, 2.0]], np.float32)


def affine() -> ModelProto:
    """``x @ w.T + b`` for w = 1, b = 1, and ``z`` = -x."""
    n = Net(("x", ("N", 2)))
    w, b = n.array("w", np.ones((3, 2), np.float32)), n.array("b", np.ones(3, np.float32))
    return n.model(n.op("Gemm", "x", w, b, name="y", transB=1), n.op("Neg", "x", name="z"))


def vector(name: str, size: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, (size,))


def run(model: ModelProto, values: dict[str, Array]) -> dict[str, Array]:
    return Session(*assemble(model, values)).run({"x": X})


def test_outputs_by_name() -> None:
    found = Session(affine()).run({"x": X, "nothing": X})
    assert {name: value.tolist() for name, value in found.items()} == {"y": [[4.0] * 3], "z": [[-1.0, -2.0]]}


def test_several_inputs() -> None:
    found = Session(affine()).run_all([{"x": X}, {"x": 2 * X}])
    assert [float(outputs["y"][0, 0]) for outputs in found] == [4.0, 7.0]


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of any size are handed over beside a model."""
    monkeypatch.setattr(runtime, "SMALL_MODEL", 1)
    monkeypatch.setattr(runtime.files, "SMALL_TENSOR", 1)


@pytest.mark.usefixtures("beside")
def test_weights_that_nothing_reads() -> None:
    """ONNX Runtime drops them before it looks for what is handed over; a graph inside a node may read one, too."""
    model = affine()
    inner = helper.make_graph([helper.make_node("Neg", ["inside"], ["v"])], "g", [], [vector("v", 2)])
    model.graph.node.append(helper.make_node("If", ["yes"], ["v_out"], then_branch=inner, else_branch=inner))
    for name, array in {"yes": np.asarray(True), "inside": np.ones(2, "f4"), "unread": np.ones(2, "f4")}.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    model.graph.output.append(vector("v_out", 2))
    values: dict[str, Array] = {name: np.full(2, 3, np.float32) for name in ("inside", "unread")}
    assert run(model, values)["v_out"].tolist() == [-3.0, -3.0]


@pytest.mark.parametrize("large", [False, True], ids=["in the model", "beside it"])
def test_other_weights(large: bool, request: pytest.FixtureRequest) -> None:
    if large:
        request.getfixturevalue("beside")
    values: dict[str, Array] = {"w": np.full((3, 2), 2, np.float32)}
    model = affine()
    copy, outside = assemble(model, values)
    assert set(outside) == ({"w"} if large else set())
    assert [t.name for t in copy.graph.initializer] == ["w", "b"]
    assert run(model, values)["y"].tolist() == [[7.0] * 3]
    own = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert (own["w"] == 1).all(), "the model itself is left as it was"


def test_what_it_cant_load_or_run_is_one_sentence() -> None:
    broken = affine()
    broken.graph.node[0].op_type = "Nothing"
    with pytest.raises(OnnxpartError, match=r"^ONNX Runtime can't load the model: .*; check its operators\.$"):
        Session(broken)
    with pytest.raises(OnnxpartError, match=r"^ONNX Runtime can't run the model: .*; check its operators\.$"):
        Session(affine()).run({"x": np.zeros((1, 3), np.float32)})


def test_an_output_that_a_fusion_loses(capfd: pytest.CaptureFixture[str]) -> None:
    """Transpositions around a Gemm are fused into one that doesn't give its own result, which is an output, too."""
    n = Net(("x", (1, 2)), opset=18)
    weight = n.op("Transpose", n.array("w", np.ones((2, 3), np.float32)), perm=[1, 0])
    inner = n.op("Gemm", "x", weight, name="inner", transB=1)
    turned = n.op("MatMul", n.array("last", np.ones((1, 3), np.float32)), n.op("Transpose", inner, perm=[1, 0]))
    model = n.model(inner, turned)
    assert Session(model).run({"x": X})["inner"].tolist() == [[3.0] * 3]
    assert capfd.readouterr().out == ""


def test_what_fails_is_tried_once_more_without_fusions(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(*arguments: object, **_: object) -> None:
        tried.append(arguments)
        raise RuntimeError("no kernel")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(OnnxpartError, match="no kernel"):
        Session(affine())
    assert len(tried) == 2
