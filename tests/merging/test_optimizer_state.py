"""The optimizer's state: merged by the weights' scatter, second moments by the squared scale, kept in a file."""

from pathlib import Path

import numpy as np
import pytest

import onnxpart
from models import lenet
from onnxpart.emission.split import Split
from onnxpart.errors import MergeError, ModelError
from onnxpart.merging.optimizer_state import OptimizerState, load_state, merge_states, save_state, unmerge_states
from onnxpart.storage.rows import Array
from onnxpart.storage.safetensors import save_arrays

K = 2


@pytest.fixture(scope="module")
def split() -> Split:
    return onnxpart.split(lenet(0), K)


def state(split: Split, part: int, kind: str = "adam", step: int = 7) -> OptimizerState:
    rng = np.random.default_rng(part)
    slots: dict[str, dict[str, Array]] = {}
    for name, array in onnxpart.arrays(split.parts[part]).items():
        if array.dtype == np.float32:
            drawn = rng.standard_normal((2, *array.shape), dtype=np.float32)
            slots[name] = {"exp_avg": drawn[0], "exp_avg_sq": drawn[1] ** 2}
    return OptimizerState(kind, step, slots)


def test_first_moments_go_like_the_weights_and_second_ones_by_the_squared_scale(split: Split) -> None:
    states = [state(split, p) for p in range(K)]
    merged = merge_states(split.plan, states)
    first = onnxpart.merge(split.plan, [s.slot("exp_avg") for s in states])
    assert (merged.kind, merged.step) == ("adam", 7)
    assert merged.slots.keys() == first.keys()
    scaled = [initializer for initializer in split.plan.initializers if initializer.reduces]
    assert scaled
    for initializer in split.plan.initializers:
        slots, name = merged.slots[initializer.name], initializer.name
        np.testing.assert_array_equal(slots["exp_avg"], first[name])
        for p, part in enumerate(states):
            for index, mine in initializer.pieces(p):
                piece = part.slots[name]["exp_avg_sq"][mine]
                if initializer.disjoint:
                    expected = piece / (K**2 if initializer.reduces else 1)
                else:  # in every part: the mean
                    expected = np.mean([s.slots[name]["exp_avg_sq"] for s in states], axis=0)[mine]
                np.testing.assert_allclose(slots["exp_avg_sq"][index], expected, rtol=1e-6)


def test_where_a_step_is_scaled_so_is_adams(split: Split) -> None:
    """A gradient of g in the parts is one of s g in the whole, and Adam's moments of s g are those of g by s, s^2."""
    gradients = [state(split, p).slot("exp_avg") for p in range(K)]
    states = [
        OptimizerState("adam", 1, {n: {"exp_avg": g, "exp_avg_sq": g**2} for n, g in part.items()})
        for part in gradients
    ]
    merged = merge_states(split.plan, states)
    for initializer in split.plan.initializers:
        if initializer.disjoint:
            slots = merged.slots[initializer.name]
            np.testing.assert_allclose(slots["exp_avg"] ** 2, slots["exp_avg_sq"], rtol=1e-5)


def test_a_divided_state_merges_to_what_it_was(split: Split) -> None:
    merged = merge_states(split.plan, [state(split, p) for p in range(K)], into="original")
    parts = unmerge_states(split.plan, merged)
    assert [(part.kind, part.step) for part in parts] == [("adam", 7)] * K
    for p, part in enumerate(parts):
        for name, slots in state(split, p).slots.items():
            if split.plan.by_name[name].disjoint:
                for slot, array in slots.items():
                    np.testing.assert_allclose(part.slots[name][slot], array, rtol=1e-6)
    again = merge_states(split.plan, parts, into="original")
    for name, slots in merged.slots.items():
        for slot, array in slots.items():
            np.testing.assert_allclose(again.slots[name][slot], array, rtol=1e-6)


def test_a_state_of_another_network_is_not_divided(split: Split) -> None:
    name = split.plan.initializers[0].name
    with pytest.raises(MergeError, match=r"has shape .* it comes from another network"):
        unmerge_states(split.plan, OptimizerState("sgd", 1, {name: {"momentum_buffer": np.zeros(3, np.float32)}}))


def test_the_fewest_steps_count_and_kinds_must_agree(split: Split) -> None:
    assert merge_states(split.plan, [state(split, 0, step=9), state(split, 1, step=4)]).step == 4
    with pytest.raises(MergeError, match="optimizers are adam and sgd; train all parts with the same one"):
        merge_states(split.plan, [state(split, 0), state(split, 1, kind="sgd")])


def test_a_state_is_read_as_it_was_written(split: Split, tmp_path: Path) -> None:
    mine = state(split, 0)
    save_state(mine, tmp_path / "a.safetensors")
    theirs = load_state(tmp_path / "a.safetensors")
    assert (theirs.kind, theirs.step, theirs.slots.keys()) == (mine.kind, mine.step, mine.slots.keys())
    for name, slots in mine.slots.items():
        assert theirs.slots[name].keys() == slots.keys()
        for slot, array in slots.items():
            np.testing.assert_array_equal(theirs.slots[name][slot], array)
    save_arrays(mine.slot("exp_avg"), tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"weights.safetensors holds no optimizer state"):
        load_state(tmp_path / "weights.safetensors")
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:100])
    with pytest.raises(ModelError, match=r"broken.safetensors can't be read as safetensors"):
        load_state(tmp_path / "broken.safetensors")
