"""What every engine does, and that both do the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import config
from torch._dynamo.utils import get_static_address_type
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models import regression_mlp
from onnxpart import split
from onnxpart.errors import OnnxpartError, UsageError
from onnxpart.torch import import_onnx
from onnxpart.torch.data.loaders import TensorLoader
from onnxpart.torch.training.choose_engine import ENGINES, choose
from onnxpart.torch.training.engine import compiled, device_of, has_images, moved, output_of, using
from onnxpart.torch.training.fused import Fused, check_alike
from onnxpart.torch.training.job import Job, alone
from onnxpart.torch.training.loop import evaluated, near
from onnxpart.torch.training.series import Series
from onnxpart.torch.training.settings import OptimizerKind, Settings

CPU = torch.device("cpu")
RNG = torch.Generator().manual_seed(0)
DATA = TensorLoader((torch.randn(10, 3, generator=RNG),), torch.randn(10, 2, generator=RNG), 4, shuffle=False)


def job(*modules: nn.Module) -> Job:
    return Job(modules, tuple(range(len(modules))), DATA, F.mse_loss, Settings(1, lr=0.1, clip=0.5), range(1))


def pair() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(3, 2) for _ in range(2)]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("tpu", "isn't known"), ("meta", "isn't supported"), ("cuda:99", "isn't available"), ("mps", "isn't available")],
)
def test_devices_that_are_not_there(name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        device_of(name)


def test_an_apple_chip_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_of("mps") == torch.device("mps")


def test_a_module_has_one_output() -> None:
    assert output_of(torch.ones(1)) == 1
    with pytest.raises(OnnxpartError, match="several outputs"):
        output_of((torch.ones(1), torch.ones(1)))


def test_images_have_their_channels_last() -> None:
    assert has_images([nn.Linear(2, 2), nn.Conv2d(2, 2, 1)])
    assert not has_images([nn.Linear(2, 2), nn.Conv1d(2, 2, 1)])
    image, flat = torch.ones(2, 3, 4, 5), torch.ones(2, 3)
    (found, same), _ = moved(((image, flat), flat), CPU, images=True)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert same.is_contiguous()


def test_engines_take_the_same_steps() -> None:
    found = []
    for kind in ENGINES.values():
        modules = pair()
        engine = kind(job(*modules), CPU)
        for step, batch in enumerate(DATA.epoch(0)):
            engine.step([batch], 0.1, step)
        engine.finish()
        found.append([parameter.detach() for module in modules for parameter in module.parameters()])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", ENGINES)
def test_a_part_that_is_put_into_a_state_is_in_it(kind: str) -> None:
    one, other = (ENGINES[kind](job(*pair()), CPU) for _ in range(2))
    for step, batch in enumerate(DATA.epoch(0)):
        one.step([batch], 0.1, step)
    for i in range(2):
        other.load(i, one.part(i))
        want, have = one.part(i), other.part(i)
        assert want.taken == have.taken == 3
        torch.testing.assert_close(have.tensors, want.tensors)
        torch.testing.assert_close(have.slots, want.slots)


def test_evaluation_weighs_samples_not_batches() -> None:
    """10 samples in batches of 4, 4 and 2."""
    modules = pair()
    found = evaluated(Series(job(*modules), CPU), DATA)
    (x,), y = DATA.inputs, DATA.target
    for module, (loss, metric) in zip(modules, found, strict=True):
        assert loss == pytest.approx(float(F.mse_loss(module(x), y).detach()), rel=1e-5)
        assert metric == 0


@pytest.mark.parametrize("engine", [Series, Fused])
def test_mixed_precision_holds_in_evaluation(engine: type[Series] | type[Fused]) -> None:
    mixed, full = (replace(job(*pair()), settings=Settings(1, amp=amp)) for amp in (True, False))
    (x,), module = DATA.inputs, pair()[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = float(F.mse_loss(module(x).float(), DATA.target))
    found, exact = (evaluated(engine(each, CPU), DATA)[0][0] for each in (mixed, full))
    assert found == pytest.approx(expected, rel=1e-3)
    assert found != pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_part_skips_the_steps_whose_gradients_overflow(optimizer: OptimizerKind) -> None:
    settings = Settings(1, optimizer=optimizer, amp=True, amp_dtype="float16", clip=0.5)
    batch = next(DATA.epoch(0))
    engine, other = (Series(replace(job(*pair()), settings=settings), CPU) for _ in range(2))
    for i, scale in enumerate((1.0, 2.0**24)):
        state = engine.part(i)
        engine.load(i, replace(state, scaler={**state.scaler, "scale": scale}))
    engine.step([batch], 0.1, 0)
    first, second = engine.part(0), engine.part(1)
    assert (first.scaler["scale"], second.scaler["scale"]) == (1.0, 2.0**23)
    assert not torch.equal(first.tensors["weight"], pair()[0].weight)
    torch.testing.assert_close(second.tensors, pair()[1].state_dict(), rtol=0, atol=0)
    assert all(not tensor.any() for slots in second.slots.values() for tensor in slots.values())
    assert (first.taken, second.taken) == ((1, 0) if optimizer == "adam" else (1, 1))
    for i in range(2):
        other.load(i, engine.part(i))
    for each in (engine, other):
        each.step([batch], 0.1, 1)
    for i in range(2):
        one, same = engine.part(i), other.part(i)
        torch.testing.assert_close(same.tensors, one.tensors, rtol=0, atol=0)
        torch.testing.assert_close(same.slots, one.slots, rtol=0, atol=0)
        assert (same.taken, same.scaler) == (one.taken, one.scaler)


def test_fused_parts_arent_trained_in_float16() -> None:
    settings = Settings(1, amp=True, amp_dtype="float16")
    kind, why = choose(replace(job(*pair()), settings=settings), CPU)
    assert kind is Series
    assert "but in float16 a part skips those that overflow; use the engine series, or bfloat16" in why


def test_one_part_at_a_time_has_gradients() -> None:
    modules, seen = pair(), list[bool]()
    modules[0].bias.grad = torch.ones(2)
    modules[1].register_forward_pre_hook(lambda *_: seen.append(modules[0].bias.grad is None))
    Series(job(*modules), CPU).step([next(DATA.epoch(0))], 0.1, 0)
    assert seen == [True]
    assert modules[1].bias.grad is None


@pytest.mark.parametrize(
    ("device", "accumulate", "mode"), [("cpu", 1, None), ("cuda", 1, "reduce-overhead"), ("cuda", 2, None)]
)
def test_what_is_compiled_for_a_gpu_is_graphs(
    device: str, accumulate: int, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[object]()
    monkeypatch.setattr(torch, "compile", lambda call, mode: asked.append(mode) or call)
    settings = Settings(1, accumulate=accumulate, compile=True)
    assert compiled(abs, settings, torch.device(device))(-1) == 1
    assert compiled(abs, replace(settings, compile=False), torch.device(device)) is abs
    assert asked == [mode]


def counting(graphs: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch trace, and note the graphs in place of compiling them, as if nothing had been compiled before."""
    torch.compiler.reset()

    def backend(graph: Callable[..., object], _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))


def test_each_part_is_compiled_once_for_each_size_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though torch compiles a piece of code only so often."""
    graphs = list[object]()
    counting(graphs, monkeypatch)
    modules = [import_onnx(part) for part in split(regression_mlp(0, inputs=3, hidden=(4,)), 2).parts]
    settings = Settings(1, compile=True)
    data = TensorLoader(DATA.inputs, DATA.target[:, :1], 4)
    with config.patch(recompile_limit=2):
        for _ in range(2):
            engine = Series(replace(job(*modules), settings=settings, loader=data), CPU)
            for step, batch in enumerate(data.epoch(0)):
                engine.step([batch], 0.1, step)
            assert len(graphs) == 4


def test_graphs_take_stacked_tensors_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise CUDA graphs would copy all weights before each step, and torch would make none where it writes them."""
    counting([], monkeypatch)
    modules = [nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(2)]
    engine = Fused(replace(job(*modules), settings=Settings(1, compile=True)), CPU)
    engine.step([next(DATA.epoch(0))], 0.1, 0)
    held = [*engine.parameters.values(), *engine.buffers.values()]
    assert len(held) == 7
    assert all(get_static_address_type(tensor) is not None for tensor in held)


def test_a_gpu_is_the_current_one_and_multiplies_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    before, gpu, current = torch.get_float32_matmul_precision(), torch.device("cuda:1"), list[torch.device]()
    monkeypatch.setattr(torch.cuda, "device", lambda device: current.append(device) or nullcontext())
    with using(CPU):
        assert torch.get_float32_matmul_precision() == before
    with using(gpu):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before == "highest"
    assert current == [gpu]


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="older versions have one way to say so")
def test_tf32_that_is_on_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        with using(torch.device("cuda")):
            assert matmul.fp32_precision == "tf32"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize(("free", "moves"), [(4 * 200, True), (4 * 200 - 4, False)])
def test_samples_that_fit_stay_on_a_gpu(free: int, moves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 samples of 3 and 2 floats."""
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    monkeypatch.setattr(TensorLoader, "to", lambda self, device: replace(self, seed=1) if device == gpu else self)
    assert near(DATA, gpu) == (replace(DATA, seed=1) if moves else DATA)
    assert near(DATA, CPU) is DATA


def test_a_loader_of_a_device_has_its_samples_there() -> None:
    found = DATA.to(torch.device("meta"))
    assert {x.device.type for x in (*found.inputs, found.target)} == {"meta"}
    assert (found.batch_size, found.shuffle) == (4, False)


class Indices(TorchFunctionMode):
    """Notes the device of each index."""

    def __init__(self) -> None:
        super().__init__()
        self.devices = list[str]()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is Tensor.__getitem__:
            self.devices.append(args[1].device.type)
        return function(*args, **(kwargs or {}))


def test_samples_on_a_device_are_chosen_there() -> None:
    """A GPU would end all its work before it copies indices from the CPU."""
    with Indices() as found:
        list(DATA.to(torch.device("meta")).epoch(0))
    assert found.devices == ["meta"] * 6


@pytest.mark.parametrize(
    "other", [nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2)), nn.Linear(3, 2, bias=False), nn.Linear(3, 2).double()]
)
def test_parts_that_differ_are_trained_in_series(other: nn.Module) -> None:
    with pytest.raises(UsageError, match="parts 0 and 1 differ in more than their weights"):
        check_alike([nn.Linear(3, 2), other])
    kind, why = choose(job(nn.Linear(3, 2), other), CPU)
    assert kind is Series
    assert "fused isn't possible: parts 0 and 1 differ" in why


def test_what_stops_the_fused_engine_may_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(Fused, "step", step)
    found = choose(job(nn.Linear(3, 2), nn.Linear(3, 2)), CPU)
    assert found == (Series, "engine series; fused isn't possible: RuntimeError")


def test_one_part_is_trained_in_series() -> None:
    assert choose(job(nn.Linear(3, 2)), CPU) == (Series, "")


def test_a_part_alone_keeps_its_number() -> None:
    both = job(*pair())
    assert (alone(both, 1).modules, alone(both, 1).numbers) == ([both.modules[1]], (1,))
