"""Every operator, each of its inputs made of hidden units along each axis: small networks from ONNX's node tests."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

from onnxpart import OnnxpartError, split, verify
from onnxpart.analysis.rules.table import TABLE
from onnxpart.errors import PartitionError
from onnxpart.verification.oracles import TOLERANCE
from onnxpart.verification.runtime import Session
from tests.networks.ensemble import deviation

FEATURES = 5
OPSETS = (24, 23, 22, 20, 18, 17, 13, 12, 10, 7)
LARGEST = 4096
"""Cells with larger results are left out."""
WITH_GRAPHS = frozenset(("If", "Loop", "Scan"))


@dataclass(frozen=True)
class Cell:
    """One network: the node of a test case, its input number `slot` computed from hidden units along `axis`.

    Other inputs are constants; `given`: those of floats are inputs of the network.
    """

    case: str
    op_type: str
    slot: int
    axis: int
    given: bool = False

    @property
    def title(self) -> str:
        """How tests and tables name it."""
        return f"{self.case}-{self.slot}-{self.axis}{'-given' if self.given else ''}"


@dataclass(frozen=True)
class Outcome:
    """`verified`, `refused`, `wrong`, or `unusable` where ONNX Runtime can't run the network as it stands."""

    status: str
    reason: str = ""


@cache
def _cases() -> dict[str, TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, while reference values are computed
        found = {case.name.removeprefix("test_"): case for case in collect_testcases(None)}
    return {name: case for name, case in found.items() if _usable(case)}


def _usable(case: TestCase) -> bool:
    """Whether a case is one node of an operator with a rule, on tensors of types that can be computed."""
    assert case.model is not None
    graph = case.model.graph
    if len(graph.node) != 1 or graph.node[0].domain or graph.node[0].op_type not in TABLE.keys() - WITH_GRAPHS:
        return False
    if not case.data_sets or not all(isinstance(value, np.ndarray) for side in case.data_sets[0] for value in side):
        return False
    kinds = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    return kinds <= {TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}


def cells(most: int = 3) -> list[Cell]:
    """All cells of at most so many test cases of each operator, those of different forms first."""
    by_operator: dict[str, dict[Any, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, case in _cases().items():
        assert case.model is not None
        node = case.model.graph.node[0]
        form = tuple(sorted(a.name for a in node.attribute)), tuple(map(bool, node.input)), _ranks(case)
        by_operator[node.op_type][form].append(name)
    result = []
    for op_type, forms in sorted(by_operator.items()):
        names = [name for _, name in sorted((i, name) for group in forms.values() for i, name in enumerate(group))]
        for name in names[:most]:
            for slot, axis in _places(_cases()[name]):
                result.append(Cell(name, op_type, slot, axis))
                if _given(_cases()[name], slot):
                    result.append(Cell(name, op_type, slot, axis, given=True))
    return result


def _given(case: TestCase, slot: int) -> dict[str, NDArray[Any]]:
    """The inputs of floats beside a slot, by name."""
    assert case.model is not None
    assert case.data_sets is not None
    declared = [v.name for v in case.model.graph.input]
    values = dict(zip(declared, map(np.asarray, case.data_sets[0][0]), strict=True))
    return {n: value for n, value in values.items() if n != declared[slot] and value.dtype == np.float32}


def _ranks(case: TestCase) -> tuple[int, ...]:
    assert case.data_sets is not None
    return tuple(np.ndim(value) for value in case.data_sets[0][0])


def _places(case: TestCase) -> Iterator[tuple[int, int]]:
    """The inputs and axes of a case along which there can be units."""
    assert case.data_sets is not None
    for slot, value in enumerate(case.data_sets[0][0]):
        for axis, size in enumerate(np.shape(value)):
            if size > 1 and 0 < np.size(value) <= LARGEST:
                yield slot, axis


@lru_cache(maxsize=256)
def network(cell: Cell) -> ModelProto | None:
    """The cell as a model of the newest opset that ONNX Runtime runs it in; None where there is none."""
    case = _cases()[cell.case]
    assert case.model is not None
    own = case.model.opset_import[0].version
    return next((m for opset in OPSETS if opset <= own and _runs(cell, m := _network(cell, opset))), None)


def _network(cell: Cell, opset: int) -> ModelProto:
    """The cell as a model: x -> hidden units -> the node -> a linear layer to each output."""
    case = _cases()[cell.case]
    assert case.model is not None
    assert case.data_sets is not None
    graph, values = case.model.graph, case.data_sets[0][0]
    rng = np.random.default_rng(0)
    node = onnx.NodeProto()
    node.CopyFrom(graph.node[0])
    node.name = "studied"
    nodes, weights, outputs = [], [], []
    given = _given(case, cell.slot) if cell.given else {}
    for value, declared in zip(values, graph.input, strict=True):
        if declared.name != graph.input[cell.slot].name and declared.name not in given:
            nodes.append(
                helper.make_node("Constant", [], [declared.name], value=numpy_helper.from_array(np.asarray(value)))
            )
    for name, value in given.items():  # a variance, say, isn't negative
        nodes.append(helper.make_node("Abs" if (value >= 0).all() else "Identity", [f"{name}.any"], [name]))
    hidden = np.asarray(values[cell.slot])
    rows = hidden.size // hidden.shape[cell.axis]
    weights.append(_weight(rng, "network.first", FEATURES, hidden.shape[cell.axis]))
    nodes += _hidden(graph.input[cell.slot].name, hidden, cell.axis)
    nodes.append(node)
    for made, declared in zip(case.data_sets[0][1], graph.output, strict=True):
        size = int(np.size(made))
        if not 0 < size <= LARGEST:
            continue
        name = declared.name
        nodes += [
            helper.make_node("Cast", [name], [f"{name}.float"], to=TensorProto.FLOAT),
            _constant(f"{name}.flat", np.array([1, size])),
            helper.make_node("Reshape", [f"{name}.float", f"{name}.flat"], [f"{name}.row"]),
            helper.make_node("MatMul", [f"{name}.row", f"{name}.last"], [f"{name}.out"]),
        ]
        weights.append(_weight(rng, f"{name}.last", size, 3))
        outputs.append(helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, [1, 3]))
    made_graph = helper.make_graph(
        nodes,
        cell.title,
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in {
                "network.x": (rows, FEATURES),
                **{f"{n}.any": v.shape for n, v in given.items()},
            }.items()
        ],
        outputs,
        weights,
    )
    return helper.make_model(made_graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _weight(rng: np.random.Generator, name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array((rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32), name)


def _constant(name: str, value: NDArray[Any]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _hidden(name: str, like: NDArray[Any], axis: int) -> list[onnx.NodeProto]:
    """Nodes that make a tensor of hidden units along an axis, of the type and within the range of another."""
    rest = [size for a, size in enumerate(like.shape) if a != axis]
    order = [a for a in range(like.ndim) if a != axis]
    perm = [([*order, axis]).index(a) for a in range(like.ndim)]
    nodes = [
        helper.make_node("MatMul", ["network.x", "network.first"], [f"{name}.linear"]),
        helper.make_node("Sigmoid", [f"{name}.linear"], [f"{name}.unit"]),
        _constant(f"{name}.shape", np.array([*rest, like.shape[axis]])),
        helper.make_node("Reshape", [f"{name}.unit", f"{name}.shape"], [f"{name}.shaped"]),
        helper.make_node("Transpose", [f"{name}.shaped"], [f"{name}.placed"], perm=perm),
    ]
    if like.dtype == np.bool_:
        return [*nodes, _constant(f"{name}.half", np.array(0.5, np.float32)),
                helper.make_node("Greater", [f"{name}.placed", f"{name}.half"], [name])]  # fmt: skip
    finite = like[np.isfinite(like)]
    low, high = float(finite.min()), float(finite.max())
    if low < 0 < high and finite.all():  # a divisor, which mustn't come to zero
        low, high = float(np.abs(finite).min()), float(np.abs(finite).max())
    result = name if like.dtype.kind == "f" else f"{name}.moved"
    span = high - low + 0.999 if like.dtype.kind == "i" else max(high - low, 1.0)
    nodes += [
        _constant(f"{name}.span", np.array(span, np.float32)),
        _constant(f"{name}.low", np.array(low, np.float32)),
        helper.make_node("Mul", [f"{name}.placed", f"{name}.span"], [f"{name}.spread"]),
        helper.make_node("Add", [f"{name}.spread", f"{name}.low"], [result]),
    ]
    if like.dtype.kind == "i":
        nodes += [
            helper.make_node("Floor", [f"{name}.moved"], [f"{name}.whole"]),
            helper.make_node("Cast", [f"{name}.whole"], [name], to=helper.np_dtype_to_tensor_dtype(like.dtype)),
        ]
    return nodes


def judge(cell: Cell, k: int) -> Outcome:
    """Split the network of a cell and ask the oracles."""
    model = network(cell)
    if model is None:
        return Outcome("unusable")
    try:
        done = split(model, k)
    except PartitionError as error:
        return Outcome("refused", str(error))
    except OnnxpartError as error:
        return Outcome("refused", f"{type(error).__name__}: {error}")
    try:
        verdict = verify(done.analysis, done.plan, parts=done.part_drafts, whole=done.whole_draft)
        apart = deviation(done, _feed(cell, model, 2))
    except OnnxpartError as error:
        return Outcome("wrong", str(error))
    failed = [finding for finding in verdict.findings if not finding.holds]
    if failed or apart > TOLERANCE:
        return Outcome("wrong", f"whole and mean of parts are {apart:.1e} apart; {failed}")
    return Outcome("verified")


def _feed(cell: Cell, model: ModelProto, seed: int) -> dict[str, NDArray[Any]]:
    rows = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    x = np.random.default_rng(seed).standard_normal((rows, FEATURES)).astype(np.float32)
    given = _given(_cases()[cell.case], cell.slot) if cell.given else {}
    return {"network.x": x, **{f"{name}.any": value for name, value in given.items()}}


def _runs(cell: Cell, model: ModelProto) -> bool:
    """Whether ONNX Runtime runs a model, to finite numbers."""
    try:
        onnx.checker.check_model(model, full_check=True)
        found = Session(model).run(_feed(cell, model, 1))
    except (OnnxpartError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return bool(found) and all(np.isfinite(value).all() for value in found.values())
