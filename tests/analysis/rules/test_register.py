"""Rules that a user registers for operators of other domains, as ONNX Runtime's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, defs, helper

import onnxpart
from onnxpart import PartitionError, analyse, load, rules, split, verify
from onnxpart.analysis.joins import follow, join, mix
from onnxpart.analysis.labels import Fields
from onnxpart.analysis.op import Op
from onnxpart.analysis.rules.contraction import Operand, weighted
from onnxpart.analysis.rules.table import TABLE
from tests.networks.net import Net

MICROSOFT = "com.microsoft"
WIDTH, TOKENS = 12, 5
README = Path(rules.__file__).parent / "README.md"
Labels = Callable[[Op], list[Fields]]


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    """Rules that a test registers are gone behind it."""
    before = dict(TABLE)
    yield
    TABLE.clear()
    TABLE.update(before)


def transposed(op: Op) -> list[Fields]:
    """FusedMatMul with `transB`: `...i, oi -> ...o`."""
    return [weighted(op, Operand(op.fields(0), "nti"), Operand(op.fields(1), "oi"), "i", "nto")]


def skip_norm(op: Op) -> list[Fields]:
    fields = join(op, [0, 1], 3)
    mix(op, fields, [2], "normalises over units")
    follow(op, fields, 2)
    return [fields]


def skip_norm_without_mix(op: Op) -> list[Fields]:
    fields = join(op, [0, 1], 3)
    follow(op, fields, 2)
    return [fields]


def rolled(op: Op) -> list[Fields]:
    return [tuple(np.roll(f, 1, axis=-1) for f in op.fields(0))]


def network(op_type: str, declared: bool = True, opset: int = 1) -> ModelProto:
    """x ``[N, 5, 8]``, a product, the operator, a product: y ``[N, 5, 3]``."""
    n = Net(("x", ("N", TOKENS, 8)))
    h = n.op("MatMul", "x", n.random("before", 8, WIDTH))
    inputs, attributes = [h], {}
    if op_type == "FusedMatMul":
        inputs, attributes = [h, n.random("middle", WIDTH, WIDTH)], {"transB": 1}
    elif op_type == "BiasGelu":
        inputs = [h, n.random("middle", WIDTH)]
    elif op_type == "SkipLayerNormalization":
        inputs = [h, n.op("MatMul", "x", n.random("skip", 8, WIDTH)), n.positive("middle", WIDTH)]
    h = n.op(op_type, *inputs, name="own", domain=MICROSOFT, **attributes)
    model = n.model(n.op("MatMul", n.op("Relu", h), n.random("last", WIDTH, 3), name="y"), shape=("N", TOKENS, 3))
    if declared:
        info = helper.make_tensor_value_info("own", TensorProto.FLOAT, ("N", TOKENS, WIDTH))
        model.graph.value_info.append(info)
    next(o for o in model.opset_import if o.domain == MICROSOFT).version = opset
    return model


def register(op_type: str, labels: Labels, kind: rules.table.Kind = "elementwise", version: int = 1) -> None:
    adapt = None if kind == "contraction" else rules.elementwise.rewrite_broadcast
    rules.register(op_type, domain=MICROSOFT, versions=(version,), kind=kind, rewrite=adapt)(labels)


def test_the_example_of_the_readme_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    assert f"{MICROSOFT}.SkipLayerNormalization" in TABLE


def test_the_example_of_the_readme_needs_its_mix() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (line,) = re.findall(r"    mix\(op.*\n", code)
    with pytest.raises(AssertionError):
        exec(compile(code.replace(line, ""), str(README), "exec"), {})


RULES: dict[str, tuple[rules.table.Kind, Labels]] = {
    "QuickGelu": ("elementwise", rules.elementwise.unary),
    "BiasGelu": ("elementwise", rules.elementwise.broadcast),
    "FusedMatMul": ("contraction", transposed),
    "SkipLayerNormalization": ("mix", skip_norm),
}


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("op_type", RULES)
def test_an_operator_of_another_domain_is_divided(op_type: str, k: int) -> None:
    kind, labels = RULES[op_type]
    register(op_type, labels, kind)
    done = split(network(op_type), k, order="random", seed=1)
    assert not done.plan.blocked
    assert done.plan.by_name["last"].part_shape(0) == (WIDTH // k, 3)
    assert bool(done.plan.duplicated) == (kind == "mix")
    assert verify(done.analysis, done.plan, parts=done.parts, whole=done.whole).holds


WRONG: dict[str, tuple[str, rules.table.Kind, Labels]] = {
    "units moved": ("QuickGelu", "elementwise", rolled),
    "a product that turns nothing round": ("FusedMatMul", "contraction", rules.contraction.matmul),
    "a mix taken for place by place": ("SkipLayerNormalization", "elementwise", skip_norm_without_mix),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_found(name: str) -> None:
    op_type, kind, labels = WRONG[name]
    rules.register(op_type, domain=MICROSOFT, versions=(1,), kind=kind)(labels)
    done = split(network(op_type), 2, order="random", seed=1)
    assert not done.plan.blocked
    assert not verify(done.analysis, done.plan).holds


def test_an_operator_without_a_rule_is_a_barrier() -> None:
    model = load(network("QuickGelu"))
    assert analyse(model).barriers == {"QuickGelu 'own'": "operators of the domain 'com.microsoft' have no rule"}
    register("BiasGelu", rules.elementwise.broadcast)
    assert analyse(model).barriers == {"QuickGelu 'own'": "the operator com.microsoft.QuickGelu has no rule"}


def test_a_rule_is_for_its_versions() -> None:
    register("QuickGelu", rules.elementwise.unary, version=2)
    assert not analyse(load(network("QuickGelu", opset=2))).barriers
    barriers = analyse(load(network("QuickGelu"))).barriers
    assert barriers == {"QuickGelu 'own'": "version 1 of com.microsoft.QuickGelu has no rule"}


@pytest.mark.parametrize("op_type", ["Split", "Concat", "Shape"])
def test_an_operator_is_not_taken_for_one_of_the_same_name(op_type: str) -> None:
    """What another domain calls Split may be anything: here it works place by place."""
    register(op_type, rules.elementwise.unary)
    analysis = analyse(load(network(op_type)))
    planned = onnxpart.plan(analysis, 2)
    assert not analysis.barriers
    assert planned.by_name["last"].part_shape(0) == (WIDTH // 2, 3)
    assert analysis.state.sources("own") == frozenset()


def test_an_operator_is_registered_once() -> None:
    register("QuickGelu", rules.elementwise.unary)
    with pytest.raises(ValueError, match=r"the operator com\.microsoft\.QuickGelu has a rule already"):
        register("QuickGelu", rules.elementwise.unary, version=2)


def test_shapes_come_from_the_model_or_from_a_schema() -> None:
    register("QuickGelu", rules.elementwise.unary)
    model = network("QuickGelu", declared=False)
    with pytest.raises(PartitionError, match="where the shape of 'own' isn't known"):
        split(model, 2)
    tensor = [("T", ["tensor(float)"], "")]
    given = [defs.OpSchema.FormalParameter("X", "T")]
    schema = defs.OpSchema("QuickGelu", MICROSOFT, 1, inputs=given, outputs=given, type_constraints=tensor)
    schema.set_type_and_shape_inference_function(lambda context: context.set_output_type(0, context.get_input_type(0)))
    defs.register_schema(schema)
    try:
        done = split(model, 2)
        for emitted in (*done.parts, done.whole):
            onnx.checker.check_model(emitted, full_check=True)
        assert verify(done.analysis, done.plan).holds
        assert not split(done.parts[0], 2).plan.blocked
    finally:
        defs.deregister_schema("QuickGelu", 1, MICROSOFT)
