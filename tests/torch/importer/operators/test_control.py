"""Control flow, sequences and values computed at run time in imported modules, against ONNX Runtime."""

import copy
import pickle

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from onnxpart.errors import OnnxpartError
from onnxpart.torch import ImportedModule, export_weights, import_onnx, weights
from onnxpart.torch.importer.module import parameters

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
WEIGHTS = "float[2,2] w = {0.5, -0.25, 1.0, 0.75}, float[2] b = {0.5, 2.0}"
X = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)


def model(text: str) -> ModelProto:
    return onnx.parser.parse_model(HEAD + text)


def run_onnx(proto: ModelProto, *inputs: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {v.name: x for v, x in zip(proto.graph.input, inputs, strict=True)})  # type: ignore[no-any-return]


def run_torch(module: ImportedModule, *inputs: NDArray[np.generic]) -> tuple[torch.Tensor, ...]:
    result = module(*(torch.from_numpy(np.asarray(x)) for x in inputs))
    return result if isinstance(result, tuple) else (result,)


def check(proto: ModelProto, *inputs: NDArray[np.generic]) -> ImportedModule:
    """Outputs equal ONNX Runtime's, also after pickling and copying; gradients reach every parameter."""
    module = import_onnx(proto)
    for same in (module, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        for ours, theirs in zip(run_torch(same, *inputs), run_onnx(proto, *inputs), strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-5, atol=1e-6)
    module.zero_grad()
    sum((y**2).sum() for y in run_torch(module, *inputs) if y.requires_grad).backward()  # type: ignore[union-attr]
    return module


BRANCHES = """g (float[2,2] x, bool cond) => (float[2,2] y) <WEIGHTS> {
    h = MatMul(x, w)
    y = If(cond) <
        then_branch = t () => (float[2,2] a) <float[2] c = {3.0, 4.0}> { s = Add(h, b) a = Mul(s, c) },
        else_branch = e () => (float[2,2] z) { z = Relu(h) }
    >
}""".replace("WEIGHTS", WEIGHTS)


@pytest.mark.parametrize("condition", [True, False])
def test_a_branch_reads_outer_values_and_its_own(condition: bool) -> None:
    proto = model(BRANCHES)
    module = check(proto, X, np.array(condition))
    assert set(parameters(module)) == {"w", "b", "c"}
    assert {name for name, p in parameters(module).items() if p.grad is not None} == (
        {"w", "b", "c"} if condition else {"w"}
    )


def test_weights_within_bodies_are_written_back() -> None:
    proto = model(BRANCHES)
    module = import_onnx(proto)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    exported = export_weights(module, proto)
    assert set(weights(module)) == {"w", "b", "c"}
    (ours,), (theirs,) = run_torch(module, X, np.array(True)), run_onnx(exported, X, np.array(True))
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-5)


def test_a_condition_known_while_importing_leaves_one_branch() -> None:
    proto = model(
        """g (float[N,2] x) => (float[N,4] y) <int64 one = {1}, int64 two = {2}> {
            s = Shape(x)
            n = Gather(s, one)
            cond = Equal(n, two)
            h = If(cond) <then_branch = t () => (float[M,2] a) <float[2] b = {0.5, 2.0}> { a = Add(x, b) },
                          else_branch = e () => (float[K] z) <float[2] c = {1.0, 1.0}> { z = Mul(x, c) }>
            twice = Concat <axis = 1> (h, h)
            shape = Shape(twice)
            y = Reshape(twice, shape)
        }"""
    )
    module = check(proto, X)
    calls = [node.target for node in module.program.graph.nodes if node.op.startswith("call")]
    assert calls == [torch.add, torch.cat, "size", "reshape"]  # the rank behind the If is known


def test_initializers_of_one_name_in_two_bodies_are_refused() -> None:
    twins = BRANCHES.replace("{ z = Relu(h) }", "<float[2] c = {1.0, 2.0}> { z = Mul(h, c) }")
    with pytest.raises(OnnxpartError, match="initializers of two bodies are called 'c' and differ; rename one"):
        import_onnx(model(twins))


LOOP = """g (float[2,2] x, int64 n, bool go) => (float[2,2] y, float[K,2,2] all) <WEIGHTS> {
    y, all = Loop(n, go, x) <
        body = step (int64 i, bool c, float[2,2] s) => (bool more, float[2,2] t, float[2,2] found) {
        m = MatMul(s, w)
        f = Cast<to = 1>(i)
        a = Add(m, f)
        t = Add(a, b)
        found = Tanh(t)
        limit = Constant<value = int64 {2}>()
        more = Less(i, limit)
    }>
}""".replace("WEIGHTS", WEIGHTS)


@pytest.mark.parametrize(("times", "go"), [(2, True), (9, True), (0, True), (3, False)])
def test_a_loop_ends_by_count_or_condition(times: int, go: bool) -> None:
    module = check(model(LOOP), X, np.array(times), np.array(go)) if times and go else import_onnx(model(LOOP))
    outputs = run_torch(module, X, np.array(times), np.array(go))
    assert [y.shape[0] for y in outputs] == [2, min(times, 3) if go else 0]
    if times and go:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters(module).values())
    else:
        assert torch.equal(outputs[0], torch.from_numpy(X))


def test_a_scan_goes_along_axes_in_both_directions() -> None:
    proto = model(
        """g (float[2] first, float[2,5] x) => (float[2] last, float[2,5] all) <WEIGHTS> {
            last, all = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1],
                              scan_output_axes = [1], scan_output_directions = [1],
                body = step (float[2] s, float[2] e) => (float[2] t, float[2] found) {
                    m = MatMul(s, w)
                    a = Add(m, e)
                    t = Add(a, b)
                    found = Sigmoid(t)
                }> (first, x)
        }""".replace("WEIGHTS", WEIGHTS)
    )
    x = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    module = check(proto, np.array([0.5, -1.0], np.float32), x)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters(module).values())


def test_bodies_within_bodies() -> None:
    proto = model(
        """g (float[2,2] x, int64 n, bool cond) => (float[2,2] y) <WEIGHTS> {
            go = Constant<value = bool {1}>()
            y = Loop(n, go, x) <body = step (int64 i, bool c, float[2,2] s) => (bool more, float[2,2] t) {
                more = Identity(c)
                t = If(cond) <then_branch = t1 () => (float[2,2] a) { a = MatMul(s, w) },
                              else_branch = e1 () => (float[2,2] z) { z = Add(s, b) }>
            }>
        }""".replace("WEIGHTS", WEIGHTS)
    )
    for condition in (True, False):
        check(proto, X, np.array(3), np.array(condition))


def test_batch_norm_within_a_body_learns_its_statistics() -> None:
    proto = model(
        """g (float[2,2] x, bool cond) => (float[2,2] y)
        <float[2] w = {1.0, 2.0}, float[2] b = {0.0, 0.0}, float[2] mean = {0.0, 0.0}, float[2] var = {1.0, 1.0}> {
            y = If(cond) <then_branch = t () => (float[2,2] a) { a = BatchNormalization(x, w, b, mean, var) },
                          else_branch = e () => (float[2,2] z) { z = Relu(x) }>
        }"""
    )
    module = import_onnx(proto)
    run_torch(module, X, np.array(True))
    np.testing.assert_allclose(weights(module)["mean"], 0.1 * X.mean(0), rtol=1e-5)
    assert set(parameters(module)) == {"w", "b"}


def test_sequences() -> None:
    proto = model(
        """g (float[2,3] x, int64 i) => (float[2] y, float[2,3] z, int64 n) {
            parts = SplitToSequence<axis = 1, keepdims = 0>(x)
            y = SequenceAt(parts, i)
            more = SequenceInsert(parts, y)
            fewer = SequenceErase(more, i)
            z = ConcatFromSequence<axis = 1, new_axis = 1>(fewer)
            n = SequenceLength(more)
        }"""
    )
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for ours, theirs in zip(
        run_torch(import_onnx(proto), x, np.array(1)), run_onnx(proto, x, np.array(1)), strict=True
    ):
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_settings_may_be_computed_at_run_time() -> None:
    proto = model(
        """g (float[2,4] x, int64[1] axes, int64[1] starts, int64[4] pads, float low) => (float[M,N] y)
        <int64[1] end = {9}, float[4] w = {1.0, 2.0, 3.0, 4.0}> {
            a = Mul(x, w)
            b = Slice(a, starts, end, axes)
            c = Pad(b, pads)
            d = Clip(c, low)
            e = ReduceSum(d, axes)
            y = Add(d, e)
        }"""
    )
    inputs = (np.array([1]), np.array([2]), np.array([0, 1, 1, 0]), np.array(-0.5, np.float32))
    module = check(proto, np.arange(8, dtype=np.float32).reshape(2, 4) - 4, *inputs)
    assert parameters(module)["w"].grad is not None


def test_an_error_at_run_time_names_the_node() -> None:
    proto = model(
        """g (float[N,4] x, int64[2] shape) => (float[A,B] y) {
            [first] a = Relu(x)
            [shaped] y = Reshape(a, shape)
        }"""
    )
    module = import_onnx(proto)
    for same in (module, pickle.loads(pickle.dumps(module))):
        with pytest.raises(OnnxpartError, match=r"node 'shaped' \(Reshape\): shape '\[3, 3\]'"):
            same(torch.ones(2, 4), torch.tensor([3, 3]))


def test_local_functions_are_written_out() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {0.5, -0.25, 1.0, 0.75}> {
            h = own.twice <factor = 3.0> (x, w)
            y = own.twice (h, w)
        }
        <domain: "own", opset_import: ["" : 17, "own" : 1]>
        twice <factor: float = 2.0> (a, w) => (c) {
            b = own.once(a, w)
            f = Constant<value_float: float = @factor>()
            c = Mul(b, f)
        }
        <domain: "own", opset_import: ["" : 17]>
        once (a, w) => (c) { b = MatMul(a, w) c = Tanh(b) }"""
    )
    assert set(parameters(check(proto, X))) == {"w"}
