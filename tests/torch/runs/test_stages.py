"""Stages of networks in memory: what each begins with, and what is kept of those before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from onnx import helper
from torch.nn import functional as F

from models import regression_mlp
from onnxpart import OptimizerState, Split, arrays, growth, shallow, split
from onnxpart.ir.trainable import FROZEN
from onnxpart.merging.cross_weights import ZERO, Edges
from onnxpart.torch import import_onnx
from onnxpart.torch.data.loaders import TensorLoader
from onnxpart.torch.runs.stages import (
    Ensemble,
    Networks,
    Stage,
    deepen_networks,
    divide_anew,
    merge_parts,
    merge_to_parts,
    parts_of,
    run_stages,
    widen_part,
)
from onnxpart.torch.training.events import Epoch
from onnxpart.torch.training.job import Result
from onnxpart.torch.training.settings import Settings
from onnxpart.torch.training.train import train

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
DATA = TensorLoader((X,), X.sum(1, keepdim=True), 8)
SETTINGS = Settings(6, lr=0.05, device="cpu")


def divided(k: int, order: str = "contiguous") -> Split:
    return split(regression_mlp(0, inputs=6, hidden=(8, 8)), k, order=order)


def learn(stage: Stage, networks: Networks) -> list[Result]:
    settings, states = stage.settings, networks.states
    return train(networks.modules, DATA, F.mse_loss, settings, engine="series", epochs=stage.epochs, states=states)


def trained(k: int, *, epochs: int = 1) -> Networks:
    (networks,) = run_stages(parts_of(divided(k)), [Stage("parts", range(epochs), SETTINGS)], learn)
    return networks


def test_memory_is_the_most_of_all_networks_and_stages() -> None:
    def taking(stage: Stage, networks: Networks) -> list[Result]:
        """As if processes of a GPU each had trained the networks."""
        results = learn(stage, networks)
        return [replace(result, gpu_memory=5 - 2 * stage.epochs.start + i) for i, result in enumerate(results)]

    stages = [
        Stage("parts", range(1), SETTINGS),
        Stage("round", range(1, 2), SETTINGS, lambda before: divide_anew(before, parts_of(divided(2)))),
        Stage("merged", range(2, 2), SETTINGS, merge_parts),
        Stage("whole", range(2, 3), SETTINGS),
    ]
    found = [networks.gpu_memory for networks in run_stages(parts_of(divided(2)), stages, taking)]
    assert found == [6, 6, None, 1]
    assert trained(2).gpu_memory is None


def mean(networks: Networks) -> torch.Tensor:
    with torch.no_grad():
        outputs = [module(X) for module in networks.modules]
    return torch.stack([output for output in outputs if isinstance(output, torch.Tensor)]).mean(0)


@pytest.mark.parametrize(
    ("begin", "count"), [(merge_parts, 1), (partial(merge_to_parts, k=2), 2), (widen_part, 1)], ids=["1", "2", "widen"]
)
def test_what_begins_computes_what_was_trained(begin: Callable[[Networks], Networks], count: int) -> None:
    parts = trained(4)
    found = begin(parts)
    assert len(found.modules) == count
    expected = replace_modules(parts, 1) if begin is widen_part else parts
    torch.testing.assert_close(mean(found), mean(expected), rtol=0.05 if begin is widen_part else 1e-4, atol=0.05)
    assert (found.states is None) == (begin is widen_part)


def test_the_ensemble_computes_the_mean_of_its_parts() -> None:
    parts = trained(4)
    with torch.no_grad():
        torch.testing.assert_close(Ensemble(parts.modules)(X), mean(parts))


def replace_modules(networks: Networks, count: int) -> Networks:
    return Networks(networks.split, networks.modules[:count])


def test_optimizer_states_are_merged() -> None:
    found = merge_parts(trained(2)).states
    assert found is not None
    assert [state.step for state in found] == [5]
    (weight,) = (
        slots["momentum_buffer"] for name, slots in found[0].slots.items() if slots["momentum_buffer"].shape == (8, 8)
    )
    assert np.abs(weight[:4, :4]).max() > 0 == np.abs(weight[:4, 4:]).max()


def test_shallow_parts_grow_deep_with_what_they_learned() -> None:
    deep = split(regression_mlp(0, inputs=6, hidden=(8,) * 4), 2)
    made = [shallow(part, 2) for part in deep.parts]
    first = Networks(deep, [import_onnx(each) for each in made])
    (before,) = run_stages(first, [Stage("shallow", range(1), SETTINGS)], learn)
    after = deepen_networks(before, deep.parts, list(map(growth, deep.parts, made)))
    assert after.curves == before.curves
    assert before.states is not None
    assert after.states is not None
    for part, weights, state in zip(deep.parts, after.weights, after.states, strict=True):
        own = arrays(part)
        assert {name: array.shape for name, array in weights.items()} == {name: own[name].shape for name in own}
        hidden = [name for name, array in weights.items() if array.shape == (4, 4)]
        slots = [state.slots[name]["momentum_buffer"] for name in hidden]
        assert len(hidden) == 3
        assert np.array_equal(weights[hidden[2]], weights[hidden[0]]) != np.array_equal(
            weights[hidden[1]], weights[hidden[0]]
        )
        assert np.array_equal(slots[2], slots[0]) != np.array_equal(slots[1], slots[0])


def test_new_edges_are_drawn() -> None:
    parts = trained(2)
    without, drawn = (merge_parts(parts, Edges(spread, seed=1)).weights[0] for spread in (0.0, 1.0))
    changed = {name for name in without if not np.array_equal(without[name], drawn[name])}
    assert {without[name].shape for name in changed} == {(8, 8)}


def test_parts_divided_anew_go_on() -> None:
    """Slices of the merged network: one way and back, the parts are as they were."""
    before = trained(2)
    after = divide_anew(before, parts_of(divided(2)))
    assert after.curves == before.curves
    assert after.states is not None
    assert before.states is not None
    for one, other in zip(before.weights, after.weights, strict=True):
        assert {name for name in one if not np.array_equal(one[name], other[name])} == {"y.bias"}  # a mean now
    assert [state.step for state in after.states] == [state.step for state in before.states] == [5, 5]


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_between_parts_outlive_rounds(frozen: bool) -> None:
    """Each round goes on from the whole of the one before, its weights between parts included."""
    model = regression_mlp(0, inputs=6, hidden=(8, 8))
    if frozen:
        helper.set_model_props(model, {FROZEN: '["fc2.weight"]'})
    edges, wholes = ZERO if frozen else Edges(keep=None), [arrays(model)["fc2.weight"]]
    networks = parts_of(split(model, 2, order="random", seed=0))
    for seed in (1, 2):
        where = networks.split.plan.by_name["fc2.weight"].counts() == 0
        (networks,) = run_stages(networks, [Stage("parts", range(1), SETTINGS)], learn)
        networks = divide_anew(networks, parts_of(split(model, 2, order="random", seed=seed)), edges)
        assert networks.whole is not None
        wholes.append(networks.whole["fc2.weight"])
        assert where.any()
        assert np.array_equal(wholes[-1][where], wholes[-2][where])
        assert np.array_equal(wholes[-1], wholes[-2]) == frozen
    merged = merge_parts(networks, edges).weights[0]["fc2.weight"]
    assert np.array_equal(merged, wholes[-1])


def test_untrained_parts_leave_new_ones_as_they_are() -> None:
    parts = parts_of(divided(2, "random"))
    weights = parts.weights
    assert divide_anew(parts_of(divided(2)), parts) is parts
    for before, after in zip(weights, parts.weights, strict=True):
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array)


def test_stages_train_on_or_begin_anew() -> None:
    told: list[tuple[str, range, bool, float]] = []

    def pretend(stage: Stage, networks: Networks) -> Sequence[Result]:
        told.append((stage.name, stage.epochs, networks.states is None, networks.seconds))
        curve = [Epoch(networks.seconds + 1.0 + number, 0.0) for number, _ in enumerate(stage.epochs)]
        return [Result(curve, OptimizerState("sgd", stage.epochs.stop, {})) for _ in networks.modules]

    stages = [
        Stage("parts", range(2), SETTINGS),
        Stage("parts", range(2, 3), SETTINGS),
        Stage("merged", range(3, 3), SETTINGS, merge_parts),
        Stage("whole", range(3, 5), SETTINGS),
    ]
    found = list(run_stages(parts_of(divided(2)), stages, pretend))
    assert told == [
        ("parts", range(2), True, 0.0),
        ("parts", range(2, 3), False, 2.0),
        ("whole", range(3, 5), False, 0.0),
    ]
    assert [[len(curve) for curve in networks.curves] for networks in found] == [[2, 2], [3, 3], [], [2]]
    assert [[state.step for state in networks.states or []] for networks in found] == [[2, 2], [3, 3], [3], [5]]
    assert found[0].modules is found[1].modules
    assert found[2].modules is found[3].modules


def test_a_stage_trains_as_one_call_does() -> None:
    at_once, in_two = trained(2, epochs=2), parts_of(divided(2))
    *_, in_two = run_stages(in_two, [Stage("", range(number, number + 1), SETTINGS) for number in range(2)], learn)
    for one, other in zip(at_once.weights, in_two.weights, strict=True):
        for name, array in one.items():
            np.testing.assert_array_equal(other[name], array)
