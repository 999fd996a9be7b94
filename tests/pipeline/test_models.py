"""The models are what they say: parameter counts, valid graphs, outputs that depend on every class."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from models import BUILDERS, GOLDEN, cifar10_net, figure1, lenet, light, light_names, regression_mlp
from models.builder import GraphBuilder, parameter_count
from onnxpart.ir.protos import captured

LIGHT_TESTED = ("shufflenet", "squeezenet")
TESTED = [name for name in BUILDERS if not name.startswith("light_")] + [f"light_{name}" for name in LIGHT_TESTED]
BATCH = 3


def run(model: ModelProto, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Run `model` in ONNX Runtime on normal inputs and return its outputs by name."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in session.get_inputs():
        shape = [BATCH if dim == "N" else dim for dim in value.shape]
        feeds[value.name] = rng.standard_normal(shape, dtype=np.float32)
    return {value.name: session.run([value.name], feeds)[0] for value in session.get_outputs()}


def weights(model: ModelProto) -> dict[str, NDArray[np.float32]]:
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype == np.float32 and array.ndim}


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (lenet(), 431_080),
        (cifar10_net(), 2_112_970),
        (figure1(), (3 + 1) * 4 + (4 + 1) * 4 + (4 + 1) * 2),
        (figure1(inputs=5, group=3, outputs=1), (5 + 1) * 6 + (6 + 1) * 6 + (6 + 1)),
        (regression_mlp(), (8 + 1) * 64 + (64 + 1) * 64 + (64 + 1)),
        (regression_mlp(hidden=(), outputs=2), (8 + 1) * 2),
    ],
    ids=lambda value: value.graph.name if isinstance(value, ModelProto) else str(value),
)
def test_parameter_count(model: ModelProto, count: int) -> None:
    assert parameter_count(model) == count


@pytest.mark.parametrize("name", TESTED)
def test_valid_and_named(name: str) -> None:
    model = BUILDERS[name]()
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    read = {value for node in model.graph.node for value in (*node.input, *captured(node))}
    assert {tensor.name for tensor in model.graph.initializer} <= read


@pytest.mark.parametrize("name", [name for name in TESTED if name != "unknown_op"])
def test_runs_with_outputs_that_vary(name: str) -> None:
    model = BUILDERS[name]()
    for output, value in zip(model.graph.output, run(model).values(), strict=True):
        dims = [dim.dim_value or BATCH for dim in output.type.tensor_type.shape.dim]
        assert value.shape == tuple(dims)
        assert np.isfinite(value).all()
        assert value.std() > 0.1 / value[0].size
        assert np.abs(value).max() < 50


@pytest.mark.parametrize("name", TESTED)
def test_same_seed_same_bytes(name: str) -> None:
    first, second = (BUILDERS[name]().SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_seed_changes_every_weight() -> None:
    first, second = weights(lenet(seed=0)), weights(lenet(seed=1))
    assert first.keys() == second.keys()
    assert all(not np.array_equal(first[name], second[name]) for name in first)


def test_goldens_are_in_the_registry_and_small() -> None:
    assert GOLDEN.keys() <= BUILDERS.keys()
    assert all(name == build().graph.name for name, build in GOLDEN.items())
    assert all(parameter_count(build()) < 1000 for build in GOLDEN.values())


def test_unknown_op_does_not_run() -> None:
    with pytest.raises(Exception, match=r"Mystery.*not a registered"):
        run(BUILDERS["unknown_op"]())


def test_locally_connected_layer_equals_a_loop_over_positions() -> None:
    model = cifar10_net()
    model.graph.output.extend([onnx.ValueInfoProto(name=name) for name in ("pool2", "local3")])
    values, arrays = run(model), weights(model)
    padded = np.pad(values["pool2"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.empty_like(values["local3"])
    for y, x in np.ndindex(6, 6):
        patch = padded[:, :, y : y + 3, x : x + 3]
        product = np.einsum("ncij,cijo->no", patch, arrays["local3.weight"][y, x])
        expected[:, :, y, x] = product + arrays["local3.bias"][:, y, x]
    np.testing.assert_allclose(values["local3"], expected, rtol=1e-4, atol=1e-4)


def test_light_names() -> None:
    assert len(light_names()) == 9
    with pytest.raises(ValueError, match="there are bvlc_alexnet"):
        light("lenet")


@pytest.mark.parametrize("name", LIGHT_TESTED)
def test_light_weights_are_random(name: str) -> None:
    model = light(name)
    assert not any(node.op_type == "ConstantOfShape" for node in model.graph.node)
    assert len(model.graph.input) == 1
    arrays = weights(model)
    assert all(np.unique(array).size > 0.9 * array.size for array in arrays.values())
    variances = [array for key, array in arrays.items() if key.endswith("_riv_0")]
    assert all(array.min() >= 0.5 and array.max() <= 1.5 for array in variances)
    assert len(variances) == (49 if name == "shufflenet" else 0)


@pytest.mark.parametrize("name", LIGHT_TESTED)
def test_light_logits_spread(name: str) -> None:
    model = light(name)
    softmax = model.graph.node[-1]
    assert softmax.op_type == "Softmax"
    model.graph.output.extend([onnx.ValueInfoProto(name=softmax.input[0])])
    assert 0.5 < run(model)[softmax.input[0]].std() < 5


def test_a_second_initializer_of_one_name_is_refused() -> None:
    g = GraphBuilder("twice")
    g.integers("shape", [1])
    with pytest.raises(ValueError, match="'shape' exists already"):
        g.integers("shape", [1])
