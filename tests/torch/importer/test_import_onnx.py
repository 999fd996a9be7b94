"""The importer against ONNX Runtime, and what makes an imported module trainable."""

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from models import BUILDERS, lenet, light
from onnxpart.errors import OnnxpartError
from onnxpart.torch import ImportedModule, export, export_weights, import_onnx, load_weights, weights
from onnxpart.torch.importer.module import parameters
from onnxpart.torch.importer.operators import registry
from tests.networks.net import Net
from tests.networks.running import run_onnx

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
Array = NDArray[Any]
UNKNOWN = {"unknown_op"}
"""Models with an operator that the importer has no entry for."""
SMALL = sorted(set(BUILDERS) - {name for name in BUILDERS if name.startswith("light_")} - UNKNOWN)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _drawn_alike() -> None:
    """Each test draws the same numbers in whatever order they run: rounding is compared with the outputs' spread."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def build(
    nodes: list[NodeProto],
    inputs: dict[str, list[int | str]],
    initializers: Mapping[str, Array],
    opset: int = 17,
    outputs: tuple[str, ...] = ("y",),
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def feeds(model: ModelProto, batch: int = 3) -> dict[str, Array]:
    """Random inputs; a symbolic size becomes `batch`."""
    result = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or batch for dim in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        result[value.name] = normal(*shape) if dtype == np.float32 else RNG.integers(0, 2, shape).astype(dtype)
    return result


def run_torch(module: ImportedModule, inputs: dict[str, Array]) -> tuple[torch.Tensor, ...]:
    result = module(*(torch.from_numpy(array) for array in inputs.values()))
    return result if isinstance(result, tuple) else (result,)


def assert_equal_to_onnx(model: ModelProto, tolerance: float = 1e-5) -> None:
    inputs = feeds(model)
    with torch.no_grad():
        got = run_torch(import_onnx(model).eval(), inputs)
    for ours, theirs in zip(got, run_onnx(model, inputs), strict=True):
        assert ours.shape == theirs.shape
        difference = np.abs(ours.numpy().astype(np.float64) - theirs)
        assert difference.max() <= tolerance * (float(np.std(theirs)) or 1.0)


def before_softmax(model: ModelProto) -> ModelProto:
    """The model up to its last Softmax, which would magnify rounding."""
    result = copy.deepcopy(model)
    softmax = next(node for node in result.graph.node if node.op_type == "Softmax")
    result.graph.output[0].name = softmax.input[0]
    result.graph.output[0].type.tensor_type.ClearField("shape")
    result.graph.node.remove(softmax)
    return result


@pytest.mark.parametrize("name", SMALL)
def test_small_models_equal_onnx_runtime_and_can_be_trained(name: str) -> None:
    model = BUILDERS[name]()
    assert_equal_to_onnx(model)
    module = import_onnx(model).eval()
    for _ in range(20):  # a unit may be off for one of them, a branch not taken
        sum((y**2).sum() for y in run_torch(module, feeds(model))).backward()  # type: ignore[union-attr]
    assert not [
        key for key, parameter in parameters(module).items() if parameter.grad is None or not parameter.grad.any()
    ]


def one(
    op_type: str,
    *arrays: Array | None,
    shape: tuple[int, ...] = (2, 4, 9, 8),
    opset: int = 17,
    **attributes: Any,
) -> ModelProto:
    """A model of one node over x and the arrays; None leaves an optional input out."""
    names = [f"c{i}" if array is not None else "" for i, array in enumerate(arrays)]
    node = helper.make_node(op_type, ["x", *names], ["y"], "node", **attributes)
    constants = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    return build([node], {"x": list(shape)}, constants, opset)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


OPERATORS = {
    "conv asymmetric": one("Conv", normal(6, 2, 3, 2), normal(6), group=2, pads=[0, 1, 2, 0], strides=[2, 1]),
    "conv same upper": one("Conv", normal(6, 4, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv same lower": one("Conv", normal(6, 4, 4, 2), auto_pad="SAME_LOWER", strides=[3, 2]),
    "conv valid": one("Conv", normal(6, 4, 3, 2), auto_pad="VALID", dilations=[2, 1]),
    "conv 1d": one("Conv", normal(6, 4, 3), shape=(2, 4, 9)),
    "conv 3d": one("Conv", normal(2, 4, 3, 3, 3), normal(2), shape=(1, 4, 5, 5, 5)),
    "transposed": one("ConvTranspose", normal(4, 3, 3, 3), normal(6), group=2, strides=[2, 2], pads=[1] * 4),
    "transposed asymmetric": one("ConvTranspose", normal(4, 3, 3, 3), strides=[2, 2], pads=[1, 0, 0, 1]),
    "transposed to shape": one("ConvTranspose", normal(4, 3, 3, 3), strides=[2, 2], output_shape=[18, 16]),
    "max pool ceil": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "max pool asymmetric": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
    "max pool dilated": one("MaxPool", kernel_shape=[2, 2], dilations=[2, 3]),
    "average pool": one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average pool asymmetric": one("AveragePool", kernel_shape=[3, 3], pads=[0, 1, 1, 0]),
    "average pool same": one("AveragePool", kernel_shape=[3, 2], auto_pad="SAME_UPPER", strides=[2, 2]),
    "average pool padded": one("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1),
    "global max pool": one("GlobalMaxPool"),
    "lrn odd": one("LRN", size=3, alpha=0.5, beta=0.6, bias=2.0),
    "instance norm": one("InstanceNormalization", normal(4), normal(4), epsilon=1e-3),
    "layer norm": one("LayerNormalization", normal(9, 8), normal(9, 8), axis=2),
    "layer norm broadcast": one("LayerNormalization", normal(8), normal(8), axis=1),
    "gemm": one("Gemm", normal(9, 5), normal(5), shape=(3, 9), alpha=0.5, beta=2.0),
    "gemm transposed": one("Gemm", normal(5, 3), shape=(3, 9), transA=1, transB=1),
    "softmax before 13": one("Softmax", axis=2, opset=11),
    "log softmax": one("LogSoftmax", axis=1),
    "pad reflect": one("Pad", ints(0, 0, 2, 1, 0, 0, 0, 3), mode="reflect"),
    "pad and crop": one("Pad", ints(0, 1, -2, 1, 0, 0, 0, 3), np.array(0.5, np.float32)),
    "pad axes": one("Pad", ints(1, 2), None, ints(-1), opset=18),
    "slice": one("Slice", ints(1, -7), ints(2**40, -1), ints(1, -1), ints(2, 3)),
    "slice from the start": one("Slice", ints(-(2**63)), ints(2), ints(1)),
    "slice backwards": one("Slice", ints(-1), ints(-(2**40)), ints(2), ints(-2)),
    "slice before 10": one("Slice", starts=[1], ends=[-1], axes=[2], opset=9),
    "gather matrix": one("Gather", np.array([[0, -1], [2, 1]], np.int64), axis=1),
    "gather scalar": one("Gather", np.array(-2, np.int64), axis=2),
    "gather elements": one("GatherElements", RNG.integers(-4, 4, (2, 4, 9, 3)), axis=1),
    "expand": one("Expand", ints(3, 1, 4, 1, 1), shape=(4, 2, 1)),
    "tile": one("Tile", ints(1, 2, 1, 3)),
    "reshape": one("Reshape", ints(0, 2, -1, 8)),
    "squeeze": one("Squeeze", ints(-3), shape=(2, 1, 3, 1)),
    "squeeze all before 13": one("Squeeze", shape=(2, 1, 3, 1), opset=11),
    "unsqueeze": one("Unsqueeze", ints(0, -1)),
    "flatten": one("Flatten", axis=-2),
    "flatten all": one("Flatten", axis=0),
    "transpose": one("Transpose"),
    "space to depth": one("SpaceToDepth", shape=(2, 3, 4, 6), blocksize=2),
    "depth to space": one("DepthToSpace", shape=(2, 8, 4, 6), blocksize=2),
    "depth to space crd": one("DepthToSpace", shape=(2, 8, 4, 6), blocksize=2, mode="CRD"),
    "reduce mean": one("ReduceMean", axes=[-1, 1], keepdims=0),
    "reduce mean all": one("ReduceMean", opset=18),
    "reduce sum": one("ReduceSum", ints(2)),
    "reduce max": one("ReduceMax", ints(1, 2), opset=18),
    "reduce l2": one("ReduceL2", axes=[1]),
    "reduce log sum exp": one("ReduceLogSumExp", axes=[1, 3]),
    "clip": one("Clip", np.array(-0.5, np.float32), np.array(0.5, np.float32)),
    "clip one side": one("Clip", None, np.array(0.5, np.float32)),
    "clip before 11": one("Clip", min=-0.1, max=2.0, opset=9),
    "cast": one("Cast", to=TensorProto.DOUBLE),
    "trilu": one("Trilu", upper=0),
    "composite": one("MeanVarianceNormalization"),
    "prelu": one("PRelu", normal(4, 1, 1)),
    **{name: one(name) for name in ("Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Selu", "Softplus")},
    **{name: one(name) for name in ("Celu", "Erf", "Sigmoid", "Softsign", "Tanh", "ThresholdedRelu")},
    "mish": one("Mish", opset=18),
    "gelu tanh": one("Gelu", approximate="tanh", opset=20),
}  # fmt: skip


@pytest.mark.parametrize("case", OPERATORS)
def test_operators_equal_onnx_runtime(case: str) -> None:
    model = OPERATORS[case]
    if case == "cast":
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    assert_equal_to_onnx(model)


@pytest.mark.parametrize("size", [2, 4, 5])
def test_response_norm_of_any_size_follows_the_standard(size: int) -> None:
    model = one("LRN", size=size, alpha=0.5)  # ONNX Runtime has odd sizes only
    inputs = feeds(model)
    (got,) = run_torch(import_onnx(model), inputs)
    x = inputs["x"]
    for channel in range(x.shape[1]):
        window = x[:, max(0, channel - (size - 1) // 2) : channel + size // 2 + 1]
        scale = 1 + 0.5 / size * (window**2).sum(1)
        np.testing.assert_allclose(got[:, channel].numpy(), x[:, channel] / scale**0.75, rtol=1e-5)


def test_several_inputs_outputs_and_pieces() -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1),
        helper.make_node("Where", ["mask", "a", "b"], ["picked"]),
        helper.make_node("Max", ["a", "b", "z"], ["most"]),
    ]
    mask = np.array([True, False, True])
    model = build(nodes, {"x": ["N", 6], "z": ["N", 3]}, {"mask": mask}, outputs=("picked", "most"))
    assert_equal_to_onnx(model)


def test_sizes_are_computed_while_importing() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "axes"], ["batch_list"]),
        helper.make_node("Concat", ["batch_list", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    model = build(nodes, {"x": ["N", 4, 6]}, {"zero": np.array(0), "axes": ints(0), "rest": ints(-1)})
    assert_equal_to_onnx(model)
    module = import_onnx(model)
    operators = [node.target for node in module.program.graph.nodes if node.op.startswith("call")]
    assert operators == ["size", "reshape"]
    assert not list(module.buffers())


def test_a_model_with_a_fixed_batch_takes_any() -> None:
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Expand", ["w", "s"], ["y"])]
    module = import_onnx(build(nodes, {"x": [1, 3]}, {"w": normal(1, 3)}))
    assert module(torch.zeros(5, 3)).shape == (5, 3)


@pytest.mark.parametrize("model", [lenet(), light("shufflenet")], ids=["lenet", "shufflenet"])
def test_gradients_reach_every_parameter(model: ModelProto) -> None:
    module = import_onnx(before_softmax(model) if model.graph.node[-1].op_type == "Softmax" else model)
    torch.manual_seed(0)
    sum((output**2).mean() for output in run_torch(module, feeds(model))).backward()  # type: ignore[union-attr]
    for name, parameter in parameters(module).items():
        assert parameter.grad is not None, name
        if not name.endswith("_b_0") or "conv" not in name:  # a bias before a batch norm has no effect
            assert parameter.grad.abs().sum() > 0, name


def test_parameters_are_the_weights_under_their_names() -> None:
    model = light("shufflenet")
    module = import_onnx(model)
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    statistics = {name for node in norms for name in node.input[3:]}
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    assert set(parameters(module)) == floats - statistics
    assert statistics <= set(weights(module)) - set(parameters(module))


@pytest.mark.parametrize("name", ["w.1", "w_1", "a%2Eb", "a.b", "type", "training", "T", 'q"u\\o', "\n", "é/ü:0", "0"])
def test_names_survive(name: str) -> None:
    model = build([helper.make_node("MatMul", ["x", name], ["y"])], {"x": ["N", 4]}, {name: normal(4, 3)})
    module = import_onnx(model)
    assert list(parameters(module)) == list(weights(module)) == [name]
    np.testing.assert_array_equal(weights(module)[name], numpy_helper.to_array(model.graph.initializer[0]))
    assert_equal_to_onnx(model)


def test_similar_names_stay_apart() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w.1"], ["h"]), helper.make_node("MatMul", ["h", "w_1"], ["y"])]
    model = build(nodes, {"x": ["N", 4]}, {"w.1": normal(4, 4), "w_1": normal(4, 4)})
    assert set(parameters(import_onnx(model))) == {"w.1", "w_1"}
    assert_equal_to_onnx(model)


def test_a_tied_initializer_is_one_parameter() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Identity", ["w"], ["alias"]),
        helper.make_node("Transpose", ["alias"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "turned"], ["y"]),
    ]
    model = build(nodes, {"x": ["N", 4]}, {"w": normal(4, 4)})
    assert_equal_to_onnx(model)
    module = import_onnx(model)
    assert list(parameters(module)) == ["w"]
    module(torch.ones(2, 4)).sum().backward()
    (parameter,) = module.parameters()
    x, w = torch.ones(2, 4), parameter.detach().clone().requires_grad_()
    (x @ w @ w.T).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(parameter.grad, w.grad)


def batch_norm(momentum: float, *, shared: bool = False) -> ModelProto:
    names: list[str] = ["scale", "bias", "mean", "scale" if shared else "var"]
    node = helper.make_node("BatchNormalization", ["x", *names], ["y"], momentum=momentum)
    arrays = {name: np.abs(normal(4)) + np.float32(0.5) for name in names}
    return build([node], {"x": ["N", 4, 3, 3]}, arrays)


def test_batch_norm_learns_its_statistics_with_onnx_momentum() -> None:
    model = batch_norm(0.7)
    module, before = import_onnx(model), weights(import_onnx(model))
    x = torch.from_numpy(feeds(model, 8)["x"])
    y = module(x)
    torch.testing.assert_close(
        y.mean((0, 2, 3)), torch.from_numpy(before["bias"]), atol=1e-5, rtol=0.0
    )  # it normalises by the batch
    after = weights(module)
    mean, var = (0.7 * before[name] for name in ("mean", "var"))
    np.testing.assert_allclose(after["mean"], mean + 0.3 * x.mean((0, 2, 3)).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["var"], var + 0.3 * x.var((0, 2, 3)).numpy(), rtol=1e-4)
    assert set(parameters(module)) == {"scale", "bias"}
    module.eval()
    module(x)
    np.testing.assert_array_equal(weights(module)["mean"], after["mean"])


def test_a_statistic_that_is_also_a_scale_becomes_its_own() -> None:
    model = batch_norm(0.9, shared=True)
    assert_equal_to_onnx(model)
    module = import_onnx(model)
    module(torch.from_numpy(feeds(model, 8)["x"])).sum().backward()
    assert set(parameters(module)) == {"scale", "bias"}
    exported = export_weights(module, model)
    inputs = feeds(model)
    with torch.no_grad():
        (got,) = run_torch(module.eval(), inputs)
    np.testing.assert_allclose(got.numpy(), run_onnx(exported, inputs)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [9, 17])
def test_dropout_acts_in_training_only(opset: int) -> None:
    ratio: dict[str, Array] = {"ratio": np.array(0.25, np.float32)} if opset > 11 else {}
    attribute: dict[str, Any] = {"ratio": 0.25} if opset < 12 else {}
    node = helper.make_node("Dropout", ["x", *ratio], ["y", "mask"], "drop", **attribute)
    module = import_onnx(build([node], {"x": ["N", 1000]}, ratio, opset))
    x = torch.ones(50, 1000)
    torch.manual_seed(0)
    y = module(x)
    assert abs((y == 0).float().mean().item() - 0.25) < 0.01
    torch.testing.assert_close(y.max(), torch.tensor(1 / 0.75))
    assert torch.equal(module.eval()(x), x)
    assert not list(module.parameters())


def test_settings_and_single_constants_are_not_trained() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("Mul", ["b", "factor"], ["c"]),
        helper.make_node("Clip", ["c", "", "limit"], ["y"]),
    ]
    arrays = {
        "w": normal(4, 1),
        "bias": normal(1),
        "factor": np.array([0.3], np.float32),
        "limit": np.array(2, np.float32),
    }
    module = import_onnx(build(nodes, {"x": ["N", 4]}, arrays))
    assert set(parameters(module)) == {"w", "bias"}


def test_weights_go_out_and_come_back(tmp_path: Path) -> None:
    model = lenet(0)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    module = import_onnx(path)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    exported = export_weights(module, model)
    inputs = feeds(model)
    with torch.no_grad():
        (got,) = run_torch(module.eval(), inputs)
    np.testing.assert_allclose(got.numpy(), run_onnx(exported, inputs)[0], rtol=1e-4, atol=1e-4)

    other = import_onnx(model)
    load_weights(other, weights(module))
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), module.parameters(), strict=True))
    with pytest.raises(OnnxpartError, match=r"conv1\.weight"):
        load_weights(other, {"conv1.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(OnnxpartError, match="'nothing' isn't an initializer"):
        load_weights(other, {"nothing": np.zeros(1, np.float32)})
    with pytest.raises(OnnxpartError, match="export into the imported model"):
        export_weights(module, BUILDERS["chain"]())


def test_modules_can_be_copied_pickled_and_stacked() -> None:
    module, other = import_onnx(lenet(0)).eval(), import_onnx(lenet(1)).eval()
    x = torch.from_numpy(feeds(lenet())["x"])
    with torch.no_grad():
        assert torch.equal(module(x), copy.deepcopy(module)(x))
        assert torch.equal(module(x), pickle.loads(pickle.dumps(module))(x))
        state, buffers = torch.func.stack_module_state([module, other])
        run = torch.func.functionalize(lambda p, b: torch.func.functional_call(module, (p, b), (x,)))
        stacked = torch.func.vmap(run)(state, buffers)
        torch.testing.assert_close(stacked, torch.stack([module(x), other(x)]), rtol=1e-3, atol=1e-4)


def test_unknown_operators_are_refused_by_name() -> None:
    with pytest.raises(OnnxpartError, match=r"node 'mystery' \(Mystery\).*example\.unknown.*onnxpart/torch"):
        import_onnx(BUILDERS["unknown_op"]())
    with pytest.raises(OnnxpartError, match=r"node 'node' \(Cast\): torch has no type for ONNX element type 22"):
        import_onnx(one("Cast", to=TensorProto.INT4, opset=21))


def test_a_missing_result_is_named() -> None:
    names = ["scale", "bias", "mean", "var"]
    nodes = [helper.make_node("BatchNormalization", ["x", *names], ["y", "m", "v", "saved", "w"])]
    model = build(nodes, {"x": [2, 3]}, {name: normal(3) for name in names}, 9, ("y", "saved"))
    with pytest.raises(OnnxpartError, match="'saved' is an output that the importer doesn't compute"):
        import_onnx(model)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OnnxpartError, match=r"nowhere\.onnx doesn't exist"):
        import_onnx(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bias_first", [False, True])
def test_products_and_biases_become_linear_layers(turned: bool, bias_first: bool) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t" if turned else "w"], ["h"]),
        helper.make_node("Add", ["b", "h"] if bias_first else ["h", "b"], ["y"]),
    ]
    model = build(nodes, {"x": ["N", 3, 4]}, {"w": normal(5, 4) if turned else normal(4, 5), "b": normal(5)})
    assert_equal_to_onnx(model)
    calls = [node.target for node in import_onnx(model).program.graph.nodes if node.op.startswith("call")]
    assert calls == ([] if turned else ["t"]) + [torch.nn.functional.linear]


@pytest.mark.parametrize(
    ("bias", "again"),
    [(normal(3, 1), False), (normal(1), False), (normal(5), True)],
    ids=["column", "one", "used twice"],
)
def test_what_is_no_bias_stays_an_addition(bias: Array, again: bool) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["y"])]
    nodes += [helper.make_node("Relu", ["h"], ["z"])] if again else []
    model = build(nodes, {"x": [3, 4]}, {"w": normal(4, 5), "b": bias}, outputs=("y", "z") if again else ("y",))
    assert_equal_to_onnx(model)
    calls = [node.target for node in import_onnx(model).program.graph.nodes if node.op.startswith("call")]
    assert torch.add in calls


class Encoder(torch.nn.Module):
    """A small transformer as people write it, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(self.embed(tokens))
        return y


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["lenet", "transformer"])
def test_modules_compile_as_one_graph(name: str, training: bool, tmp_path: Path) -> None:
    if name == "lenet":
        module, x = import_onnx(lenet()), torch.randn(2, 1, 28, 28)
    else:
        x = torch.randint(0, 11, (2, 5))
        export(Encoder(), x, tmp_path / "model.onnx")
        module = import_onnx(tmp_path / "model.onnx")
    module.train(training)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for call in (module, compiled):
        torch.manual_seed(0)
        module.zero_grad()
        y = call(x)
        y.square().sum().backward()
        results.append((y.detach(), [parameter.grad for parameter in module.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_sizes_and_types_other_than_float32() -> None:
    x = torch.randn(3, 1, 28, 28)
    module = import_onnx(lenet()).eval()
    with torch.no_grad():
        wanted = module(x)
        assert isinstance(wanted, torch.Tensor)
        for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
            got = copy.deepcopy(module).to(dtype)(x.to(dtype))
            assert isinstance(got, torch.Tensor)
            assert got.dtype == dtype
            torch.testing.assert_close(got.float(), wanted, rtol=tolerance, atol=tolerance)


def test_external_data_are_read_from_where_they_lie(tmp_path: Path) -> None:
    model, path = lenet(), tmp_path / "model.onnx"
    onnx.save(lenet(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    x = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(import_onnx(path).eval()(x), import_onnx(model).eval()(x))
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(OnnxpartError, match=r"weights\.bin of .* is missing; copy it beside the model"):
        import_onnx(path)
    with pytest.raises(OnnxpartError, match="has external data, but no folder to look for it in"):
        import_onnx(onnx.load(path, load_external_data=False))


def test_damaged_and_invalid_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(lenet().SerializeToString()[:1000])
    with pytest.raises(OnnxpartError, match="truncated"):
        import_onnx(path)
    cyclic = [helper.make_node("Add", ["x", "z"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    with pytest.raises(OnnxpartError, match="cycle"):
        import_onnx(build(cyclic, {"x": [2]}, {}))
    with pytest.raises(OnnxpartError, match="not a valid ONNX model"):
        import_onnx(build([helper.make_node("Relu", ["nowhere"], ["y"])], {"x": [2]}, {}))
    text = build([helper.make_node("Identity", ["x"], ["y"])], {"x": [2]}, {})
    text.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(OnnxpartError, match="'x' has type string"):
        import_onnx(text)
    old = build([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, {}, opset=6)
    with pytest.raises(OnnxpartError, match="has opset 6, and the oldest"):
        import_onnx(old)


def test_an_operator_that_is_newer_than_the_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "NEWEST", 12)
    with pytest.raises(OnnxpartError, match=r"node 'node' \(Relu\): .*opset 17"):
        import_onnx(one("Relu"))
    import_onnx(one("LeakyRelu", opset=12))


def test_gradients_pass_where_activations_are_quantized_and_turned_back() -> None:
    settings = ["scale", "zero"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("QuantizeLinear", ["h", *settings], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *settings], ["y"]),
    ]
    arrays = {"w": normal(4, 5), "scale": np.array(0.05, np.float32), "zero": np.array(3, np.int8)}
    model = build(nodes, {"x": ["N", 4]}, arrays)
    assert_equal_to_onnx(model)
    module = import_onnx(model)
    x = torch.randn(3, 4) * 0.1
    (y,) = run_torch(module, {"x": x.numpy()})
    y.sum().backward()
    torch.testing.assert_close(module.get_parameter("w").grad, x.sum(0)[:, None].expand(4, 5))
    assert set(parameters(module)) == {"w"}


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 15, 18, 20, 21, 23, 25])
def test_opsets_from_the_oldest_on(opset: int) -> None:
    n = Net(("x", ["N", 3, 9, 9]), opset=opset)
    attribute, inputs = ({"axes": [2]}, []) if opset < 13 else ({}, [n.ints(2)])
    h = n.op("Relu", n.conv("x", 3, 4, kernel=3))
    statistics = [n.random("scale", 4), n.random("shift", 4), n.random("mean", 4), n.positive("var", 4)]
    h = n.op("MaxPool", n.op("BatchNormalization", h, *statistics), kernel_shape=[2, 2], strides=[2, 2])
    h = n.op("AveragePool", h, kernel_shape=[2, 2])
    pads = [0, 0, 1, 0, 0, 0, 0, 1]
    if opset < 11:
        h = n.op("Clip", n.op("Pad", h, pads=pads, value=0.5), min=-0.5, max=0.8)
    else:
        h = n.op("Clip", n.op("Pad", h, n.ints(*pads), n.number(0.5)), n.number(-0.5), n.number(0.8))
    h = n.op("Softmax", n.op("ReduceSum", h, *inputs, keepdims=0, **attribute), axis=1)
    h = n.op("Squeeze", n.op("Unsqueeze", h, *inputs, **attribute), *inputs, **attribute)
    model = n.model(n.linear(n.op("Flatten", h), 16, 5), shape=("N", 5))
    assert_equal_to_onnx(model)
