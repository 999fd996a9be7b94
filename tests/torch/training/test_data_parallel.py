"""Ranks that share a part's batches; `scripts/test-cluster` tries it with several."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn import functional as F

from onnxpart.torch.training import loop
from onnxpart.torch.training.data_parallel import DataParallel, gradient_bytes, ring
from onnxpart.torch.training.events import ignore
from onnxpart.torch.training.job import Job
from onnxpart.torch.training.series import Series
from onnxpart.torch.training.settings import Settings
from tests.networks.training import accuracy, check_equal, one_rank, parts, small, stripes

CPU = torch.device("cpu")
SETTINGS = Settings(epochs=2, lr=0.01, optimizer="adam", device="cpu", seed=3)


def job_of(module: nn.Module, settings: Settings = SETTINGS) -> Job:
    return Job([module], (1,), stripes(), F.cross_entropy, settings, range(2), stripes(20, 60), accuracy)


def test_one_rank_trains_as_a_part_alone_does() -> None:
    (_, module) = parts(small(dropout=0.2, norm=True))
    other = copy.deepcopy(module)
    alone = loop.run(job_of(module), Series, CPU, ignore)
    with one_rank():
        shared = loop.run(job_of(other), DataParallel, CPU, ignore)
    check_equal(alone, shared, [module], [other])


@pytest.mark.parametrize("samples", [10, 2, 1])
def test_shares_have_the_mean_of_the_batch(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three ranks by itself, as if nothing came from the others."""
    settings = replace(SETTINGS, optimizer="sgd", momentum=0.0)
    (_, module) = parts(small())
    inputs, target = next(stripes().epoch(0))
    batch = tuple(x[:samples] for x in inputs), target[:samples]

    def found(engine: Series) -> list[Tensor]:
        before = [p.detach().clone() for p in engine.job.modules[0].parameters()]
        judged = engine.evaluate(batch)
        loss = engine.step([batch, batch], 0.1, 0)
        return [
            loss,
            judged,
            *(a.detach() - b for a, b in zip(engine.job.modules[0].parameters(), before, strict=True)),
        ]

    alone = found(Series(job_of(copy.deepcopy(module), settings), CPU))
    monkeypatch.setattr(dist, "all_reduce", lambda values: values)

    def share(rank: int) -> list[Tensor]:
        """What a rank gives; its engine ends with this, since one that outlives its process group may wait forever."""
        engine = DataParallel(job_of(copy.deepcopy(module), settings), CPU)
        engine.rank, engine.ranks = rank, 3
        loss, judged, *moved = found(engine)
        return [loss, judged, *(each / 3 for each in moved)]

    with one_rank():
        shares = [share(rank) for rank in range(3)]
    for expected, given in zip(alone, zip(*shares, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(given).sum(0), expected)


def test_the_bytes_of_gradients_are_those_that_are_reduced() -> None:
    (_, module) = parts(small(norm=True))
    reduced: list[int] = []
    count = lambda group, bucket: (  # noqa: E731
        reduced.append(bucket.buffer().nbytes),
        default_hooks.allreduce_hook(group, bucket),
    )[1]
    with one_rank():
        engine = DataParallel(job_of(module), CPU)
        engine.calls[0].register_comm_hook(dist.group.WORLD, count)  # type: ignore[union-attr, operator]
        engine.step([next(stripes().epoch(0))], 0.1, 0)
    assert sum(reduced) == gradient_bytes(module)
    assert [ring(workers, 600) for workers in (1, 2, 3)] == [0, 600, 800]


def test_what_any_rank_asks_for_all_ranks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    (_, module) = parts(small())
    with one_rank():
        engine = DataParallel(job_of(module), CPU)
        assert engine.together(False, True) == [False, True]
        monkeypatch.setattr(dist, "all_reduce", lambda asked: asked.add_(torch.tensor([1.0, 0.0])))
        assert engine.together(False, False) == [True, False]
