"""Every small network, divided in every way: valid models, both identities, and the sizes that they should have."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from models import BUILDERS, GOLDEN
from onnxpart import OnnxpartError, PartitionError, Plan, Split, arrays, load, merge, plan, split, verify
from onnxpart.inspection.dump import dump_model
from onnxpart.ir.arrays import array_of
from onnxpart.ir.protos import captured
from onnxpart.planning.plan import METADATA, METADATA_PART, ORDERS
from tests.networks.copies import restored
from tests.networks.net import Net

REFUSED = {
    "refused": "tied to the output 'features'",
    "unknown_op": "operators of the domain 'example.unknown' have no rule",
}
DIVIDED = [name for name in GOLDEN if name not in REFUSED]
UNEQUAL = [(1, 3), (2, 1, 1)]
WAYS = [
    *((k, order, None) for k, order in product((2, 3, 4), ORDERS)),
    *((len(shares), "contiguous", shares) for shares in UNEQUAL),
]


def check_model(model: ModelProto) -> None:
    """Full check, strict shape inference, and nothing left that isn't used."""
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    names = [name for node in model.graph.node for name in node.output if name]
    assert len(set(names)) == len(names)
    read = {name for node in model.graph.node for name in (*node.input, *captured(node))}
    assert {t.name for t in model.graph.initializer} <= read


def check_embedded(model: ModelProto, planned: Plan, part: int | None) -> None:
    """The plan travels with every model."""
    props = {p.key: p.value for p in model.metadata_props}
    assert Plan.from_json(props[METADATA]) == planned
    assert props.get(METADATA_PART) == (None if part is None else str(part))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(str(v) for v in (way[0], way[1], *(way[2] or ()))))
@pytest.mark.parametrize("name", DIVIDED)
def test_models_are_valid_and_both_identities_hold(name: str, way: tuple[int, str, tuple[int, ...] | None]) -> None:
    k, order, shares = way
    done = split(GOLDEN[name](), k, order=order, seed=5, shares=shares)
    for p, part in enumerate(done.parts):
        check_model(part)
        check_embedded(part, done.plan, p)
    check_model(done.whole)
    check_embedded(done.whole, done.plan, None)
    verdict = verify(done.analysis, done.plan, parts=done.parts, whole=done.whole)
    assert verdict.holds, max(verdict.findings, key=lambda f: f.deviation)
    oracles = {f.oracle for f in verdict.findings}
    assert oracles == {"ensemble identity", "block identity"} or (name == "slice_split" and done.plan.replicated)
    assert verdict.against == ("original" if done.plan.same_graph else "duplicated whole")


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, k: int) -> None:
    with pytest.raises(PartitionError, match=REFUSED[name]):
        split(GOLDEN[name](), k)


def test_an_operator_that_nothing_knows_stands_in_every_part() -> None:
    model = GOLDEN["layernorm"]()
    model.graph.node.append(helper.make_node("Mystery", ["x"], ["strange"], name="mystery", domain="example.unknown"))
    model.graph.output.append(helper.make_tensor_value_info("strange", onnx.TensorProto.FLOAT, ["N", 2]))
    model.opset_import.append(helper.make_opsetid("example.unknown", 1))
    done = split(model, 2)
    assert done.plan.blocked == ("Mystery 'mystery': operators of the domain 'example.unknown' have no rule",)
    assert done.plan.by_name["fc2.weight"].part_shape(0) == (2, 4)
    for emitted in (*done.parts, done.whole):
        onnx.checker.check_model(emitted)
        assert [node.op_type for node in emitted.graph.node].count("Mystery") == 1
    with pytest.raises(OnnxpartError, match=r"Mystery.*not a registered"):
        verify(done.analysis, done.plan)


@pytest.mark.parametrize("name", DIVIDED)
def test_one_part_is_the_network(name: str) -> None:
    source = load(GOLDEN[name]())
    done = split(source, 1)
    for model in (done.parts[0], done.whole):
        assert dump_model(model) == dump_model(restored(source))
    assert verify(done.analysis, done.plan).deviation == 0


@pytest.mark.parametrize("name", [*DIVIDED, "lenet", "figure1"])
def test_the_whole_is_the_original_where_nothing_is_duplicated(name: str) -> None:
    done = split(BUILDERS[name](), 2)
    if done.plan.same_graph:
        assert dump_model(done.whole) == dump_model(restored(done.analysis.model))
    else:
        assert done.plan.duplicated or any(i.stored == "apart" for i in done.plan.initializers)


# Of the weights between layers: the axes along which each is divided, hidden to hidden two, else one.
AXES = {
    "chain": {"conv1": 1, "conv2": 2, "logits": 1},
    "residual": {"stem": 1, "block1.expand": 2, "block1.project": 2, "block2.project": 2, "logits": 1},
    "concat": {"left": 1, "right": 1, "mixed": 2, "logits": 1},
    "grouped": {"stem": 1, "grouped": 2, "logits": 1},
    "depthwise": {"expand": 1, "depthwise": 1, "project": 2, "logits": 1},
    "shuffle": {"stem": 1, "grouped1": 2, "grouped2": 2, "logits": 1},
    "squeeze_excite": {"conv": 1, "reduce": 2, "excite": 2, "logits": 1},
    "flatten": {"conv": 1, "fc1": 2, "logits": 1},
    "lrn": {"conv1": 1, "conv2": 2, "logits": 1},
    "layernorm": {"fc1": 1, "norm": 1, "fc2": 2, "logits": 1},
    "qkv": {"embed": 1, "qkv": 2, "project": 2, "logits": 1},
    "shared_weight": {"fc": 1, "step": 2, "logits": 1},
    "transposed_weight": {"fc1": 1, "fc2": 2, "logits": 1},
    "two_inputs": {"fc1": 1, "logits": 1},
    "batchnorm": {"conv": 1, "y": 1},
    "groupnorm": {"conv": 1, "norm": 1, "logits": 1},
    "pixel_shuffle": {"expand": 1, "y": 1},
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", AXES)
def test_weights_shrink_as_the_paper_says(name: str, order: str) -> None:
    """By 1/K from and to what is shared, by 1/K squared between hidden layers; K = 2 divides every layer here."""
    planned = split(GOLDEN[name](), 2, order=order).plan
    for node, axes in AXES[name].items():
        initializer = planned.by_name[f"{node}.weight"]
        for part in range(2):
            kept = int(np.prod(initializer.part_shape(part)))
            assert kept * 2**axes == int(np.prod(initializer.shape)), (node, part)


@pytest.mark.parametrize("k", [2, 4])
def test_equal_parts_have_equal_shapes(k: int) -> None:
    for name in DIVIDED:
        planned = split(GOLDEN[name](), k).plan
        equal = all(i.part_shape(p) == i.part_shape(0) for i in planned.initializers for p in range(k))
        even = all(len(set(layer.parts)) <= 1 for layer in planned.layers)
        assert equal or not even, name


def annotated(name: str) -> ModelProto:
    """A golden with everything that a model can carry."""
    model = GOLDEN[name]()
    model.doc_string, model.producer_name, model.producer_version = "a model", "someone", "1.2"
    model.domain, model.model_version = "example.net", 7
    model.graph.doc_string = "a graph"
    helper.set_model_props(model, {"license": "none", "author": "someone"})
    model.graph.initializer[0].doc_string = "a weight"
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = f"about {value.name}"
    model.opset_import.append(helper.make_opsetid("example.unused", 3))
    return model


@pytest.mark.parametrize("name", ["chain", "lrn", "two_inputs"])
def test_everything_else_is_kept(name: str) -> None:
    source = annotated(name)
    done = split(source, 2)
    for model in (*done.parts, done.whole):
        for key in ("doc_string", "producer_name", "producer_version", "domain", "model_version", "ir_version"):
            assert getattr(model, key) == getattr(source, key)
        assert list(model.opset_import) == list(source.opset_import)
        assert list(model.graph.input) == list(source.graph.input)
        assert list(model.graph.output) == list(source.graph.output)
        assert (model.graph.name, model.graph.doc_string) == (source.graph.name, source.graph.doc_string)
        props = {p.key: p.value for p in model.metadata_props}
        assert {"license": "none", "author": "someone"}.items() <= props.items()
        docs = {t.name: t.doc_string for t in model.graph.initializer}
        assert docs[source.graph.initializer[0].name] == "a weight"
        dims = model.graph.input[0].type.tensor_type.shape.dim
        assert dims[0].dim_param == "N"


def test_splitting_a_part_replaces_the_plan_that_it_carries() -> None:
    outer = split(GOLDEN["chain"](), 2)
    inner = split(outer.parts[1], 2)
    for p, part in enumerate(inner.parts):
        check_embedded(part, inner.plan, p)
    check_embedded(inner.whole, inner.plan, None)
    assert verify(inner.analysis, inner.plan).holds


@pytest.mark.parametrize("name", DIVIDED)
def test_plan_round_trips_and_is_the_same_for_the_same_seed(name: str) -> None:
    for order, k in product(ORDERS, (2, 3)):
        first, second = (split(GOLDEN[name](), k, order=order, seed=11) for _ in range(2))
        assert first.plan == second.plan
        assert [m.SerializeToString(deterministic=True) for m in (*first.parts, first.whole)] == [
            m.SerializeToString(deterministic=True) for m in (*second.parts, second.whole)
        ]
        again = Plan.from_json(first.plan.to_json())
        assert again == first.plan
        assert again.to_json() == first.plan.to_json()


def test_another_seed_is_another_random_order() -> None:
    plans = {split(GOLDEN["lrn"](), 2, order="random", seed=seed).plan.units for seed in range(6)}
    assert len(plans) > 1


@pytest.mark.parametrize("name", DIVIDED)
def test_the_model_given_is_left_as_it_is(name: str) -> None:
    source = GOLDEN[name]()
    before = source.SerializeToString(deterministic=True)
    done = split(source, 2)
    verify(done.analysis, done.plan)
    assert source.SerializeToString(deterministic=True) == before


def own(done: Split) -> list[dict[str, np.ndarray]]:
    """The parts' arrays by name."""
    return [arrays(load(part)) for part in done.parts]


@pytest.mark.parametrize("name", DIVIDED)
def test_merging_untrained_parts_gives_slices_back(name: str) -> None:
    """What one part alone holds comes back as it was, at the output divided by K; the rest is zero."""
    done = split(GOLDEN[name](), 2)
    whole = merge(done.plan, own(done), into="original")
    for i in done.plan.initializers:
        source = array_of(done.analysis.model, i.name)
        held = np.zeros(i.shape, int)
        for p in range(2):
            for index, _ in i.pieces(p):
                held[index] += 1
        expected = np.where(held > 0, source, 0) / (2 if i.reduces else 1)
        np.testing.assert_allclose(whole[i.name], expected.astype(source.dtype), rtol=1e-7)
        assert whole[i.name].dtype == source.dtype


def test_a_plan_does_not_touch_the_weights() -> None:
    model = load(GOLDEN["residual"]())
    before = {name: array_of(model, name).copy() for name in model.initializers}
    done = split(model, 2)
    plan(done.analysis, 3)
    assert all(np.array_equal(array_of(model, name), value) for name, value in before.items())


def test_outputs_behind_a_mean_are_named() -> None:
    n = Net(("x", ("N", 5)))
    logits = n.linear(n.op("Relu", n.linear("x", 5, 8)), 8, 3, name="logits")
    n.op("Softmax", logits, name="probabilities")
    done = split(n.model("logits", "probabilities", shape=("N", 3)), 2)
    assert verify(done.analysis, done.plan).behind == ("probabilities",)
