"""Training: it learns, it can be repeated, and every engine gives the same."""

import copy
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from onnx import ModelProto
from torch import nn
from torch.nn import functional as F

import onnxpart
from models import lenet
from onnxpart.errors import DataError, OnnxpartError, UsageError
from onnxpart.torch import import_onnx, load_weights, split_module, weights
from onnxpart.torch.importer.module import parameters
from onnxpart.torch.training import loop
from onnxpart.torch.training.settings import AmpDtype
from onnxpart.torch.training.train import EngineKind, EpochEnd, Event, Note, Result, Settings, Steps, evaluate, train
from tests.networks.training import accuracy, parts, small, stripes

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
SETTINGS = Settings(epochs=3, lr=0.1, device="cpu", seed=3)


def check_same(one: list[Result], other: list[Result], modules: list[nn.Module], others: list[nn.Module]) -> None:
    """Curves, weights, statistics and optimizer states equal to rounding."""
    for mine, theirs in zip(one, other, strict=True):
        assert len(mine.curve) == len(theirs.curve) > 0
        for a, b in zip(mine.curve, theirs.curve, strict=True):
            assert [a.train_loss, a.loss] == pytest.approx([b.train_loss, b.loss], rel=1e-4)
            assert a.metric == b.metric
        assert (mine.state.kind, mine.state.step) == (theirs.state.kind, theirs.state.step)
        assert mine.state.slots.keys() == theirs.state.slots.keys()
        for name, slots in mine.state.slots.items():
            assert slots.keys() == theirs.state.slots[name].keys()
            for slot, array in slots.items():
                np.testing.assert_allclose(array, theirs.state.slots[name][slot], rtol=1e-3, atol=1e-6)
    for module, same in zip(modules, others, strict=True):
        for tensor, expected in zip(module.state_dict().values(), same.state_dict().values(), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)


def test_training_learns_and_repeats() -> None:
    data, test = stripes(), stripes(20, 60)
    events: list[Event] = []
    module, other = import_onnx(small()), import_onnx(small())
    loss, error = evaluate(module, test, F.cross_entropy, settings=SETTINGS)
    assert error is None
    settings = replace(SETTINGS, epochs=6)
    (result,) = train([module], data, F.cross_entropy, settings, test=test, metric=accuracy, on_event=events.append)
    ends = [event for event in events if isinstance(event, EpochEnd)]
    assert [end.result for end in ends] == result.curve
    assert [end.epoch for end in ends] == list(range(6))
    assert sum(len(event.losses) for event in events if isinstance(event, Steps)) == 6 * 6 == result.state.step
    last = result.curve[-1]
    assert last.loss is not None
    assert last.loss < loss / 2
    assert last.metric == pytest.approx(evaluate(module, test, F.cross_entropy, accuracy, SETTINGS)[1])
    assert last.seconds > result.curve[0].seconds > 0
    assert not module.training
    assert result.state.slots.keys() == parameters(module).keys()

    (again,) = train([other], data, F.cross_entropy, settings, test=test)
    assert [epoch.loss for epoch in again.curve] == [epoch.loss for epoch in result.curve]
    assert [epoch.train_loss for epoch in again.curve] == [epoch.train_loss for epoch in result.curve]


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (small(), SETTINGS),
        (small(), replace(SETTINGS, clip=0.1, weight_decay=0.01, schedule="cosine")),
        (small(), replace(SETTINGS, accumulate=4, schedule="onecycle")),
        (small(norm=True), replace(SETTINGS, schedule="step")),
        (small(dropout=0.3), replace(SETTINGS, optimizer="adam", lr=0.01)),
    ],
    ids=["plain", "clip", "accumulate", "norm", "dropout"],
)
def test_fused_parts_are_trained_as_one_by_one(model: ModelProto, settings: Settings) -> None:
    data, test, one, other = stripes(), stripes(20, 60), parts(model, 3), parts(model, 3)
    start = weights(one[0])  # type: ignore[arg-type]
    series = train(one, data, F.cross_entropy, settings, engine="series", test=test, metric=accuracy)
    fused = train(other, data, F.cross_entropy, settings, engine="fused", test=test, metric=accuracy)
    check_same(series, fused, one, other)
    assert any((start[name] != array).any() for name, array in weights(one[0]).items())  # type: ignore[arg-type]


def test_each_part_draws_masks_of_its_own() -> None:
    for engine in ("series", "fused"):
        twins: list[nn.Module] = [import_onnx(small(dropout=0.5)) for _ in range(2)]
        one, other = train(twins, stripes(), F.cross_entropy, SETTINGS, engine=engine)  # type: ignore[arg-type]
        assert one.curve[-1].train_loss != other.curve[-1].train_loss


@pytest.mark.parametrize("engine", ["series", "fused"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_goes_on_where_an_earlier_one_ended(engine: str, optimizer: str) -> None:
    settings = replace(SETTINGS, epochs=4, optimizer=optimizer, lr=0.01, schedule="cosine")  # type: ignore[arg-type]
    data, model = stripes(), small(dropout=0.2, norm=True)
    one, other = parts(model), parts(model)
    straight = train(one, data, F.cross_entropy, settings, engine=engine)  # type: ignore[arg-type]
    first = train(other, data, F.cross_entropy, settings, engine=engine, epochs=range(2))  # type: ignore[arg-type]
    second = train(
        other,
        data,
        F.cross_entropy,
        settings,
        engine=engine,  # type: ignore[arg-type]
        epochs=range(2, 4),
        states=[result.state for result in first],
    )
    for whole, before, after in zip(straight, first, second, strict=True):
        losses = [epoch.train_loss for epoch in (*before.curve, *after.curve)]
        assert [epoch.train_loss for epoch in whole.curve] == losses
        assert whole.state.step == after.state.step == 4 * 6
    for module, same in zip(one, other, strict=True):
        for tensor, expected in zip(module.state_dict().values(), same.state_dict().values(), strict=True):
            assert torch.equal(tensor, expected)


def test_auto_takes_one_of_both_and_changes_nothing() -> None:
    notes: list[Event] = []
    one, other = parts(small(dropout=0.2, norm=True)), parts(small(dropout=0.2, norm=True))
    data, test = stripes(), stripes(20, 60)
    auto = train(one, data, F.cross_entropy, SETTINGS, test=test, on_event=notes.append)
    series = train(other, data, F.cross_entropy, SETTINGS, test=test, engine="series")
    check_same(auto, series, one, other)
    assert [note.text.split()[0] for note in notes if isinstance(note, Note)] == ["engine"]


def test_uneven_parts_are_trained_in_series() -> None:
    split, notes = onnxpart.split(small(), 2, shares=(2, 1)), []
    modules: list[nn.Module] = [import_onnx(part) for part in split.parts]
    with pytest.raises(UsageError, match="parts 0 and 1 differ in more than their weights"):
        train(modules, stripes(), F.cross_entropy, SETTINGS, engine="fused")
    train(modules, stripes(), F.cross_entropy, SETTINGS, on_event=notes.append)
    assert "engine series" in notes[0].text


def test_parts_that_torch_cant_stack_are_trained_in_series() -> None:
    """Torch has no batching rule for this loss: it would compute one part after the other, and say so."""
    notes: list[Event] = []
    train(parts(small()), stripes(), F.multi_margin_loss, SETTINGS, on_event=notes.append)
    (note,) = (event for event in notes if isinstance(event, Note))
    assert note.text.startswith("engine series; fused isn't possible: There is a performance drop")


@pytest.mark.parametrize(("engine", "dtype"), [("series", "bfloat16"), ("fused", "bfloat16"), ("series", "float16")])
def test_half_precision_learns(engine: EngineKind, dtype: AmpDtype) -> None:
    settings = replace(SETTINGS, epochs=6, amp=True, amp_dtype=dtype)
    for result in train(parts(small()), stripes(), F.cross_entropy, settings, engine=engine):
        assert result.curve[-1].train_loss < 0.5 * result.curve[0].train_loss


@pytest.mark.parametrize("engine", ["series", "fused"])
def test_compiled_parts_are_trained_as_others(engine: EngineKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the backend that only traces: to generate code takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    one, other = parts(small(norm=True)), parts(small(norm=True))
    data, test = stripes(), stripes(20, 60)
    plain = train(one, data, F.cross_entropy, SETTINGS, engine="series", test=test)
    compiled = train(other, data, F.cross_entropy, replace(SETTINGS, compile=True), engine=engine, test=test)
    check_same(plain, compiled, one, other)


def test_compiled_parts_with_group_norms_are_trained_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    layers = nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    modules = list(split_module(nn.Sequential(*layers), torch.randn(2, 1, 8, 8))[0])
    settings = replace(SETTINGS, epochs=1, compile=True)
    said = "fused parts with group norms can't be compiled; use the engine series"
    with pytest.raises(UsageError, match=said):
        train(modules, stripes(), F.cross_entropy, settings, engine="fused")
    news = list[Event]()
    results = train(modules, stripes(), F.cross_entropy, settings, on_event=news.append)
    assert [result.engine for result in results] == ["series", "series"]
    assert said in next(event.text for event in news if isinstance(event, Note))


@pytest.mark.parametrize("engine", ["series", "fused"])
def test_compiled_parts_drop_what_seed_part_and_step_say(engine: EngineKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    first = parts(small(0.5))[0]
    losses = list[list[float]]()
    for seed in (0, 0, 1):
        torch.manual_seed(7 + len(losses))
        settings = replace(SETTINGS, compile=True, seed=seed, lr=1e-9)
        modules = [copy.deepcopy(first) for _ in range(2)]
        results = train(modules, stripes(), F.cross_entropy, settings, engine=engine)
        losses.append([epoch.train_loss for result in results for epoch in result.curve])
    assert losses[0] == losses[1] != losses[2]
    assert len(set(losses[0])) == len(losses[0])


def test_seconds_are_read_when_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list[object]()
    monkeypatch.setattr(loop, "synchronize", found.append)
    train(parts(small()), stripes(), F.cross_entropy, SETTINGS, engine="series", on_event=found.append)
    told = [i for i, event in enumerate(found) if isinstance(event, Steps)]
    assert len(told) == SETTINGS.epochs
    assert all(found[i - 1] == torch.device("cpu") for i in told)


def test_a_gradient_scaler_goes_on_with_the_optimizer() -> None:
    modules, settings = parts(small()), replace(SETTINGS, epochs=2, amp=True, amp_dtype="float16")
    states = None
    for epoch in range(2):
        epochs = range(epoch, epoch + 1)
        results = train(modules, stripes(), F.cross_entropy, settings, engine="series", epochs=epochs, states=states)
        states = [result.state for result in results]
        assert [state.scaler["_growth_tracker"] for state in states] == [6 * epochs.stop] * 2


def test_gradients_that_always_overflow_stop_the_run() -> None:
    """The loss itself is small."""
    settings = replace(SETTINGS, epochs=4, amp=True, amp_dtype="float16")
    with pytest.raises(OnnxpartError, match=r"part 0: gradients overflow float16 at any scale in epoch \d; lower"):
        train(parts(small())[:1], stripes(), steep, settings)


def steep(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    loss = F.cross_entropy(output, target)
    return loss + 1e9 * (loss - loss.detach())


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    modules = parts(small())
    with torch.no_grad():
        next(modules[1].parameters()).mul_(torch.nan)
    for engine in ("series", "fused"):
        with pytest.raises(OnnxpartError, match="part 1: the loss is nan at step 0; lower the rate"):
            train(modules, stripes(), F.cross_entropy, SETTINGS, engine=engine)  # type: ignore[arg-type]


def test_what_makes_no_sense_is_refused() -> None:
    for wrong, message in (
        ({"optimizer": "lion"}, "optimizer 'lion' isn't known; choose one of sgd, adam, adamw"),
        ({"lr": 0.0}, "lr is 0.0; it must be positive"),
        ({"amp": True, "amp_dtype": "float8"}, "amp_dtype 'float8' isn't known; choose one of bfloat16, float16"),
        ({"amp_dtype": "float16"}, "amp_dtype is float16, but amp is off; turn it on, or leave the type out"),
        ({"accumulate": 0}, "accumulate is 0; it must be at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            replace(SETTINGS, **wrong)  # type: ignore[arg-type]
    data, modules = stripes(), parts(small())
    with pytest.raises(UsageError, match="device 'cuda:99' isn't available"):
        train(modules, data, F.cross_entropy, replace(SETTINGS, device="cuda:99"))
    with pytest.raises(UsageError, match="device 'tpu9' isn't known"):
        train(modules, data, F.cross_entropy, replace(SETTINGS, device="tpu9"))
    with pytest.raises(UsageError, match="the engine 'both' isn't known; choose one of auto, series, fused"):
        train(modules, data, F.cross_entropy, SETTINGS, engine="both")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"aren't among the settings' range\(0, 3\)"):
        train(modules, data, F.cross_entropy, SETTINGS, epochs=range(2, 5))
    (state, _) = (result.state for result in train(modules, data, F.cross_entropy, SETTINGS))
    with pytest.raises(UsageError, match="1 states were given for 2 modules"):
        train(modules, data, F.cross_entropy, SETTINGS, states=[state])
    with pytest.raises(OnnxpartError, match="the state is that of sgd, not adam; train on with the same optimizer"):
        train(modules[:1], data, F.cross_entropy, replace(SETTINGS, optimizer="adam"), states=[state])
    with pytest.raises(OnnxpartError, match=r"momentum_buffer of 'conv.weight' has shape \(3, 1, 3, 3\)"):
        train([import_onnx(small())], data, F.cross_entropy, SETTINGS, states=[state])


@pytest.mark.parametrize("model", [lenet(0), small(norm=True)], ids=["lenet", "norm"])
def test_parts_are_trained_and_merge_with_their_momenta(model: ModelProto) -> None:
    split = onnxpart.split(model, 2)
    modules = [import_onnx(part) for part in split.parts]
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    data, settings = stripes(20, shape=shape), replace(SETTINGS, epochs=2)
    results = train(modules, data, F.cross_entropy, settings, epochs=range(1))
    whole = import_onnx(split.whole)
    load_weights(whole, onnxpart.merge(split.plan, [weights(module) for module in modules]))
    (x,), _ = next(data.epoch(0))
    with torch.no_grad():
        mean = torch.stack([module(x) for module in modules]).mean(0)
        torch.testing.assert_close(whole.eval()(x), mean, rtol=1e-4, atol=1e-5)
    state = onnxpart.merge_states(split.plan, [result.state for result in results])
    (result,) = train([whole], data, F.cross_entropy, settings, epochs=range(1, 2), states=[state])
    assert result.state.slots.keys() == parameters(whole).keys()
    assert result.state.step == 4


@pytest.mark.parametrize("engine", ["series", "fused"])
def test_data_that_are_no_numbers_are_blamed_for_the_loss(engine: EngineKind) -> None:
    loader = stripes(60)
    loader.inputs[0][7] = math.nan
    with pytest.raises(DataError, match=r"batch \d of epoch 0 holds values that are NaN or infinite; leave those"):
        train(parts(small()), loader, F.cross_entropy, Settings(2, device="cpu"), engine=engine)
    with pytest.raises(OnnxpartError, match="lower the rate"):
        train(parts(small()), stripes(60), F.cross_entropy, Settings(9, lr=1e30, device="cpu"), engine=engine)
