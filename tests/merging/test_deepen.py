"""Trained blocks stacked: copies of them, or blocks that add nothing; and what an optimizer remembers of them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from onnxpart import MergeError, OptimizerState, arrays, load, shallow, split
from onnxpart.ir.model import Model
from onnxpart.merging.deepen import New, deepen, deepen_file, deepen_state, deepened, growth
from onnxpart.merging.folder import merge_folder
from onnxpart.merging.optimizer_state import load_state, save_state, state_file
from onnxpart.storage.onnx_file import save
from tests.networks.deep import residual_mlp
from tests.networks.net import Net
from tests.networks.running import run_onnx

X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


def both(network: ModelProto, blocks: int, new: New) -> tuple[ModelProto, ModelProto]:
    """The shallow network and the one that it is deepened to."""
    made = shallow(network, blocks)
    return made, filled(network, made, new)


def filled(network: ModelProto, made: ModelProto, new: New) -> ModelProto:
    """A deep network with the weights of a shallow one."""
    return deepened(load(network), load(made), growth(network, made, new)).model()


def test_blocks_are_stacked_again_and_again() -> None:
    found = arrays(both(residual_mlp(5), 2, "copies")[1])
    for name in ("up", "down"):
        assert np.array_equal(found[f"{name}3"], found[name])
        assert np.array_equal(found[f"{name}4"], found[f"{name}2"])
        assert np.array_equal(found[f"{name}5"], found[name])


def test_weights_of_a_new_block_that_a_branch_reads_are_no_copies() -> None:
    """The shallow network trains them for the branch; those of the block that it starts as would take their place."""
    n = Net(("x", ("N", 5)))
    model, total = residual_mlp(), helper.make_tensor_value_info("total", TensorProto.FLOAT, ())
    sums = [helper.make_graph([helper.make_node(op, ["down4"], ["total"], keepdims=0)], op, [], [total])
            for op in ("ReduceSum", "ReduceMax")]  # fmt: skip
    sign = n.op("Greater", n.op("ReduceMax", "x", keepdims=0, name="most"), n.number(0), name="sign")
    n.op("If", sign, name="chosen", then_branch=sums[0], else_branch=sums[1])
    model.graph.node.extend(n.nodes)
    model.graph.initializer.extend(n.initializers.values())
    model.graph.output.append(helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ()))
    with pytest.raises(MergeError, match="'down4' is shared and would be a copy of"):
        growth(model, shallow(model, 1))


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_blocks_that_add_nothing_keep_the_function(blocks: int) -> None:
    one, other = both(residual_mlp(), blocks, "zero")
    assert np.array_equal(*(run_onnx(model, {"x": X})[0] for model in (one, other)))
    assert load(other).digest == load(residual_mlp()).digest
    one, other = both(residual_mlp(), blocks, "copies")
    assert not np.allclose(*(run_onnx(model, {"x": X})[0] for model in (one, other)), atol=1e-3)


def test_a_norm_on_the_stream_can_not_add_nothing() -> None:
    model = load(residual_mlp(post_norm=True))
    with pytest.raises(MergeError, match="can't start as one that adds nothing"):
        growth(model, shallow(model, 1), "zero")


def test_one_block_that_is_read_again_and_again() -> None:
    model = load(residual_mlp(tied=True))
    made = shallow(model, 2)
    grown = growth(model, made)
    assert not grown.sources
    with pytest.raises(MergeError, match="'down' is shared with a block that is trained"):
        growth(model, made, "zero")


def test_blocks_that_share_with_one_other() -> None:
    net = Net(("x", ("N", 6)))
    x, weights = "x", [net.random("w", 6, 6) for _ in range(3)]
    for i in (0, 1, 2, 0):
        x = net.op("Add", x, net.op("Relu", net.op("MatMul", x, weights[i])))
    model = load(net.model(x))
    with pytest.raises(MergeError, match="'w' is shared and would be a copy of"):
        growth(model, shallow(model, 2))


def test_another_network() -> None:
    made = shallow(residual_mlp(4), 2)
    with pytest.raises(MergeError, match="isn't the network that net was made from"):
        growth(residual_mlp(5), made)
    with pytest.raises(MergeError, match="doesn't say which network it was made from"):
        growth(residual_mlp(4), residual_mlp(4))


def test_arrays_that_lack_one() -> None:
    model = load(residual_mlp())
    grown = growth(model, shallow(model, 1))
    with pytest.raises(MergeError, match="has no initializer 'up'"):
        deepen(grown, {"down": np.zeros((6, 8), np.float32)})


def state(model: Model) -> OptimizerState:
    names = [name for name in model.initializers if model.trainable(name)]
    rng = np.random.default_rng(0)
    return OptimizerState("adam", 7, {n: {slot: rng.random(2) for slot in ("exp_avg", "exp_avg_sq")} for n in names})


@pytest.mark.parametrize("new", get_args(New))
def test_momenta_are_copied_or_zero_and_second_moments_copied(new: New) -> None:
    model = load(residual_mlp())
    made = load(shallow(model, 1))
    before = state(made)
    after = deepen_state(growth(model, made, new), before)
    assert (after.kind, after.step) == ("adam", 7)
    assert after.slots.keys() == state(model).slots.keys()
    for i in (2, 3, 4):
        assert np.array_equal(after.slots[f"up{i}"]["exp_avg_sq"], before.slots["up"]["exp_avg_sq"])
        expected = before.slots["up"]["exp_avg"] * (new == "copies")
        assert np.array_equal(after.slots[f"up{i}"]["exp_avg"], expected)
    assert np.array_equal(after.slots["first.weight"]["exp_avg"], before.slots["first.weight"]["exp_avg"])


def test_parts_of_a_shallow_network_become_the_deep_one(tmp_path: Path) -> None:
    """K narrow and shallow parts -> wide -> deep."""
    onnx.save_model(residual_mlp(), tmp_path / "deep.onnx")
    model = load(tmp_path / "deep.onnx")
    save(shallow(model, 2), tmp_path / "shallow.onnx")
    split(tmp_path / "shallow.onnx", 2).save(tmp_path / "parts")
    merge_folder(tmp_path / "parts", tmp_path / "wide.onnx", into="original")
    save_state(state(load(tmp_path / "wide.onnx")), state_file(tmp_path / "wide.onnx"))
    grown = deepen_file(tmp_path / "wide.onnx", model, tmp_path / "out.onnx", new="zero")
    wide, out = (run_onnx(onnx.load(tmp_path / f"{name}.onnx"), {"x": X})[0] for name in ("wide", "out"))
    assert np.allclose(wide, out, atol=1e-5)
    assert load_state(state_file(tmp_path / "out.onnx")).slots.keys() == state(model).slots.keys()
    assert grown.sources["up3"] == "up"


@pytest.fixture
def normed(tmp_path: Path) -> Path:
    """A folder with a deep network in which norms mix units that are divided."""
    net = Net(("x", ("N", 4, 6)))
    x = "x"
    for _ in range(3):
        y = net.op("MatMul", x, net.random("a", 6, 8))
        y = net.op("LayerNormalization", y, net.positive("scale", 8), net.random("bias", 8))
        x = net.op("Add", x, net.op("MatMul", net.op("Relu", y), net.random("b", 8, 6)))
    onnx.save_model(net.model(x), tmp_path / "deep.onnx")
    return tmp_path


def test_what_stands_once_per_part_is_in_no_deep_network(normed: Path) -> None:
    save(shallow(normed / "deep.onnx", 2), normed / "shallow.onnx")
    split(normed / "shallow.onnx", 2).save(normed / "parts")
    merge_folder(normed / "parts", normed / "wide.onnx")
    for name in ("wide.onnx", "parts/part0.onnx"):
        with pytest.raises(MergeError, match="merge parts with --into original"):
            deepen_file(normed / name, load(normed / "deep.onnx"), normed / "out.onnx")
    assert not (normed / "out.onnx").exists()
    merge_folder(normed / "parts", normed / "original.onnx", into="original")
    assert deepen_file(normed / "original.onnx", load(normed / "deep.onnx"), normed / "out.onnx").sources["a3"] == "a"


def test_parts_deepen_one_by_one_and_merge_then(normed: Path) -> None:
    """K narrow and shallow parts -> narrow and deep -> the whole, with the mean kept although norms are duplicated."""
    split(normed / "deep.onnx", 2).save(normed / "parts")
    x, shallow_parts = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32), []
    for file in (normed / "parts" / f"part{p}.onnx" for p in range(2)):
        shallow_parts.append(shallow(file, 1))
        save(shallow_parts[-1], normed / file.name)
        deepen_file(normed / file.name, load(file), normed / f"deep_{file.name}", new="zero")
    deep = [normed / f"deep_part{p}.onnx" for p in range(2)]
    merge_folder(normed / "parts", normed / "whole.onnx", parts=deep)
    (found,) = run_onnx(onnx.load(normed / "whole.onnx"), {"x": x})
    expected = np.mean([run_onnx(part, {"x": x})[0] for part in shallow_parts], axis=0)
    assert np.abs(found - expected).max() <= 1e-5
