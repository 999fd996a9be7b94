"""Random numbers of which each part draws its own."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from onnxpart.torch.part_random import drawing, seed_device, seed_of, uniform

X = torch.zeros(3, 4)
PARTS = torch.zeros(2)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def drawn(x: Tensor = X, *, in_dims: tuple[int | None, int] = (None, 0)) -> Tensor:
    return torch.vmap(uniform, in_dims, randomness="different")(x, PARTS)


@pytest.mark.parametrize(("x", "dim"), [(X, None), (X.expand(2, 3, 4), 0), (X[..., None].expand(3, 4, 2), 2)])
def test_each_part_draws_from_its_own_generator(x: Tensor, dim: int | None) -> None:
    with drawing(generators(1, 2)):
        found = drawn(x, in_dims=(dim, 0))
    for mine, generator in zip(found, generators(1, 2), strict=True):
        assert torch.equal(mine, torch.rand(3, 4, generator=generator))


def test_outside_torch_itself_is_drawn_from() -> None:
    torch.manual_seed(3)
    found = uniform(X, PARTS[0])
    torch.manual_seed(3)
    assert torch.equal(found, torch.rand(3, 4))


def test_only_the_cpu_and_the_own_gpu_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, seeded = list[object](), list[int]()
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or nullcontext())
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with torch.random.fork_rng([]):
        for device in (torch.device("cpu"), torch.device("cuda:1")):
            seed_device(3, device)
            assert torch.equal(torch.rand(4), torch.rand(4, generator=torch.Generator().manual_seed(3)))
    assert (entered, seeded) == ([torch.device("cuda:1")], [3])


def test_what_is_inside_ends_inside() -> None:
    outer, inner = generators(1, 2), generators(1, 2)
    with drawing(outer):
        with pytest.raises(RuntimeError, match="stop"), drawing(inner):
            raise RuntimeError("stop")
        drawn()
    assert outer[0].get_state().ne(inner[0].get_state()).any()
    torch.manual_seed(3)
    assert float(uniform(X, PARTS[0]).sum()) > 0
    assert torch.equal(inner[0].get_state(), generators(1)[0].get_state())


@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_as_one_graph(training: bool) -> None:
    x = X.requires_grad_(training)
    found = torch.compile(uniform, fullgraph=True, backend="eager")(x, PARTS[0])
    assert found.shape == X.shape
    assert 0 <= float(found.detach().min()) < float(found.detach().max()) < 1


def test_seeds_depend_on_every_number_and_its_place() -> None:
    seeds = [seed_of(*numbers) for numbers in ((0, 1), (1, 0), (0, 0), (1, 1), (0, 1, 2))]
    assert len(set(seeds)) == len(seeds)
    assert seed_of(5, 1) == seed_of(5, 1)
