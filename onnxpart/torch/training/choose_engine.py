"""Engines: how several parts take a step on the same batches: one after the other, or as one batched module."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch

from onnxpart.errors import OnnxpartError, reason
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.training.engine import Engine, synchronize
from onnxpart.torch.training.fused import Fused
from onnxpart.torch.training.job import Job
from onnxpart.torch.training.series import Series

_TRIALS = 3
ENGINES: dict[str, type[Series] | type[Fused]] = {"series": Series, "fused": Fused}


def choose(job: Job, device: torch.device) -> tuple[type[Series] | type[Fused], str]:
    """Return the faster engine by a few steps on copies of the parts, and why in words; the parts don't change."""
    if len(job.modules) == 1:
        return Series, ""
    batches = list(islice(job.loader.epoch(job.epochs.start), job.settings.accumulate))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*batching rule")  # torch would compute part by part after all
            fused = Fused(replace(job, modules=copy.deepcopy(job.modules)), device)
            fused.step(batches, 0.0, 0)
            fused.evaluate(batches[0])
    except (OnnxpartError, RuntimeError, UserWarning) as error:
        return Series, f"engine series; fused isn't possible: {reason(error)}"
    series = Series(replace(job, modules=copy.deepcopy(job.modules)), device)
    series.step(batches, 0.0, 0)
    times = [(step_seconds(series, batches, device), step_seconds(fused, batches, device)) for _ in range(_TRIALS)]
    ratio = min(one for one, _ in times) / min(other for _, other in times)
    if ratio > 1:
        return Fused, f"engine fused: {ratio:.2f} times as fast as series"
    return Series, f"engine series: {1 / ratio:.2f} times as fast as fused"


def step_seconds(engine: Engine, batches: Sequence[Batch], device: torch.device) -> float:
    """Return the seconds of a step at rate 0, which changes nothing."""
    synchronize(device)
    start = time.perf_counter()
    engine.step(batches, 0.0, 0)
    synchronize(device)
    return time.perf_counter() - start
