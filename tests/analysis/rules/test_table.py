"""Every rule of the table on a network of its own: conv, OPERATOR, conv, pooling, linear."""

from __future__ import annotations

import onnx
import pytest

from onnxpart import Plan, split, verify
from onnxpart.analysis.rules import table as rules
from tests.networks.net import Net
from tests.networks.operators import RECIPES, WIDTH, network, operator

UNCOVERED: dict[str, str] = {}
"""Operators of the table without a recipe, and why."""


def check_sizes(plan: Plan, key: str, k: int) -> None:
    """The layers in front of and behind the operator are divided as the recipe says."""
    becomes = RECIPES[key].becomes
    before, behind = (plan.by_name[f"{name}.weight"].part_shape(0) for name in ("before", "behind"))
    assert before[0] == (WIDTH if becomes == "undivided" else WIDTH // k)
    assert behind[0] == WIDTH // k
    assert bool(plan.duplicated) == (becomes == "duplicated")
    assert not plan.blocked
    if becomes == "duplicated":
        assert any(title.startswith(operator(key)) for title in plan.duplicated)
        return
    undivided = {layer.node for layer in plan.layers if not layer.parts}
    if becomes == "shared":
        assert undivided > {"Gemm 'logits'"}
    elif becomes == "divided":
        assert undivided <= {"Gemm 'logits'", "Conv 'gate'"}


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("key", RECIPES)
def test_rule(key: str, k: int) -> None:
    model = network(key)
    assert operator(key) in {node.op_type for node in model.graph.node}
    done = split(model, k)
    check_sizes(done.plan, key, k)
    for emitted in (*done.parts, done.whole):
        onnx.checker.check_model(emitted, full_check=True)
    verdict = verify(done.analysis, done.plan, parts=done.parts, whole=done.whole)
    assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)


def test_units_of_two_kinds_along_an_axis_are_concatenated() -> None:
    """The products of two layers' units, one layer's summed before, beside an input."""
    n = Net(("x", (3, 1, 6)), ("y", (3, 2, 2, 1)), ("z", (3, 1, 12)))
    heads = n.op("Reshape", n.op("MatMul", "x", n.random("weight", 6, 4)), n.ints(3, 1, 2, 2))
    summed = n.op("MatMul", n.op("Transpose", heads, perm=[0, 2, 1, 3]), "y")
    other = n.op("Reshape", n.op("MatMul", "x", n.random("other", 6, 2)), n.ints(3, 1, 1, 2))
    products = n.op("Reshape", n.op("MatMul", summed, other), n.ints(3, 1, 4))
    joined = n.op("Concat", "z", products, axis=2)
    done = split(n.model(n.op("MatMul", joined, n.random("logits", 16, 3)), shape=(3, 1, 3)), 2, order="interleaved")
    assert done.plan.by_name["other"].part_shape(0) == (6, 1)
    assert verify(done.analysis, done.plan).holds


def test_every_rule_is_tested() -> None:
    assert {operator(key) for key in RECIPES} | UNCOVERED.keys() == {name for name in rules.TABLE if "." not in name}
    assert not {operator(key) for key in RECIPES} & UNCOVERED.keys()


def test_versions_of_the_table_exist() -> None:
    known: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            known.setdefault(schema.name, set()).add(schema.since_version)
    newest = onnx.defs.onnx_opset_version()
    for name, rule in rules.TABLE.items():
        if "." in name:
            continue
        assert {v for v in rule.versions if v <= newest} <= known[name], name
        assert list(rule.versions) == sorted(set(rule.versions)), name


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_an_operator_has_one_row(domain: str) -> None:
    with pytest.raises(ValueError, match="the operator Relu has a rule already"):
        rules.register("Relu", domain=domain, versions=(99,), kind="elementwise")(lambda op: [()])
