"""Who is ended in which phase of `fit` on a Ray cluster: it goes on, or one command resumes it, as if nothing had been.

Parts have one worker each, or two; then four train the whole, on two nodes at least.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from ray.cluster_utils import Cluster

from models import BUILDERS

ROOT = Path(__file__).resolve().parents[2]
End = Callable[[Cluster, int], None]
"""What ends something of a cluster, or the process of `fit`, by its id."""
WAYS: dict[str, tuple[str, ...]] = {
    "1": (),
    "2": ("--workers-per-part", "2", "--cpus-per-part", "0.5"),
    "2-fsdp": ("--workers-per-part", "2", "--cpus-per-part", "0.5", "--fsdp"),
}
"""By how many workers each part has, and what they share, the options for that."""
LOSSES = "train_loss", "loss"
PHASES = {"parts": "checkpoints/parts/*/part1-*", "merge": "", "whole": "checkpoints/whole/part0-*"}
"""By phase, the checkpoints that show that it has begun."""


@contextmanager
def nodes() -> Iterator[Cluster]:
    """A head that trains nothing, and three nodes of one processor each: one can go, and none suffices alone."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(3):
            found.add_node(num_cpus=1, include_dashboard=False)
        yield found
    finally:
        found.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def sound() -> Iterator[Cluster]:
    """The cluster of all runs that don't end a machine, and of those that resume another."""
    with nodes() as found:
        yield found


def pid(node: Any, kind: str) -> int:
    found: int = node.all_processes[kind][0].process.pid
    return found


def workers(node: Any, names: tuple[str, ...] = ("ray::_task", "RayTrainWorker")) -> list[int]:
    """Process ids of those that train on a node, or of those with other names."""
    listed = subprocess.run(
        ["ps", "--ppid", str(pid(node, "raylet")), "-o", "pid=,args="], capture_output=True, text=True, check=False
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if any(name in line for name in names)]


def end_worker(cluster: Cluster, _: int) -> None:
    os.kill(next(worker for node in cluster.worker_nodes for worker in workers(node)), signal.SIGKILL)


def warn_worker(cluster: Cluster, _: int) -> None:
    """As a machine does that will go."""
    os.kill(next(worker for node in cluster.worker_nodes for worker in workers(node)), signal.SIGTERM)


def end_node(cluster: Cluster, _: int) -> None:
    """The machine of a worker, where there is one, with all that runs on it."""
    node = max(cluster.worker_nodes, key=lambda node: len(workers(node)))
    for process in (pid(node, "raylet"), *workers(node, ("ray::",))):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def end_head(cluster: Cluster, _: int) -> None:
    os.kill(pid(cluster.head_node, "gcs_server"), signal.SIGKILL)


def end_raylet(cluster: Cluster, _: int) -> None:
    """The one that the driver hangs on."""
    os.kill(pid(cluster.head_node, "raylet"), signal.SIGKILL)


def end_driver(_: Cluster, driver: int) -> None:
    os.kill(driver, signal.SIGKILL)


def warn_driver(_: Cluster, driver: int) -> None:
    os.kill(driver, signal.SIGTERM)


GOES_ON = end_worker, warn_worker, end_node
SPARES = end_worker, warn_worker, end_driver, warn_driver
"""What leaves the cluster as it was."""
ALL = [
    (end, phase, "1")
    for end in (end_worker, end_node, end_head, end_raylet, end_driver, warn_driver) for phase in PHASES
    if (end, phase) != (end_worker, "merge")  # when none is at work
]  # fmt: skip
ALL += [(end, phase, "2") for end in (end_worker, end_node, end_head) for phase in ("parts", "whole")]
ALL += [(warn_worker, "whole", way) for way in WAYS] + [(end_worker, "parts", "2-fsdp")]
EVERY, ONCE = 25, 370
"""Steps between checkpoints; and such that the whole, which takes steps 360 to 600, writes one only, at once."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of convolutions, and samples that tell which of two channels is brighter."""
    folder, draw = tmp_path_factory.mktemp("faults"), np.random.default_rng(0)
    proto = BUILDERS["chain"]()
    onnx.save_model(proto, folder / "model.onnx")
    value = proto.graph.input[0]
    shape = [dim.dim_value or 60 for dim in value.type.tensor_type.shape.dim]
    images = draw.standard_normal(shape, np.float32)
    samples: dict[str, Any] = {value.name: images, "target": images.mean((2, 3)).argmax(1)}
    np.savez(folder / "data.npz", **samples, **{f"test_{name}": array[:10] for name, array in samples.items()})
    return folder / "model.onnx"


def command(model: Path, out: Path, *options: object) -> list[str]:
    given = ("--data", f"npz:{model.parent / 'data.npz'}", "--epochs", 100, "--merge-at", 60, "--optimizer", "sgd",
             "--recipe", "paper", "--batch-size", 10, "--device", "cpu", "-o", out)  # fmt: skip
    return [sys.executable, "-m", "onnxpart", "fit", str(model), *map(str, given), *map(str, options)]


@pytest.fixture(scope="module")
def alone(model: Path) -> Path:
    """A run in one process."""
    out = model.parent / "alone"
    given, one = (
        command(model, out, "--engine", "series", "--checkpoint-every", EVERY),
        {**os.environ, "OMP_NUM_THREADS": "1"},
    )
    subprocess.run(given, check=True, cwd=ROOT, env=one)
    for losses in curves(out):
        assert losses[-1] < losses[0] / 2, "it learns nothing"
    return out


def curves(out: Path) -> list[list[float]]:
    """Losses in training and in test, of each part and of the whole."""
    found = json.loads((out / "report.json").read_text())
    return [[epoch[key] for epoch in curve] for curve in (*found["parts"], found["whole"]) for key in LOSSES]


def check_same(out: Path, alone: Path, way: str) -> None:
    """Curves, weights, and the bytes that workers sent; with shards of weights half as many again, and padding."""
    assert curves(out) == [pytest.approx(losses, rel=1e-4) for losses in curves(alone)]
    trained, same = (onnx.load(folder / "trained.onnx").graph.initializer for folder in (alone, out))
    for tensor, wanted in zip(same, trained, strict=True):
        arrays = numpy_helper.to_array(tensor), numpy_helper.to_array(wanted)
        np.testing.assert_allclose(*arrays, rtol=1e-4, atol=1e-5, err_msg=tensor.name)
    assert not (out / "checkpoints").exists()
    found = json.loads((out / "report.json").read_text())
    sizes, sent = found["sizes"], found["traffic"]
    shared, most = {"1": (0, 1.0), "2": (8, 1.0), "2-fsdp": (12, 1.3)}[way]
    parts = shared * sum(part["parameters"] for part in sizes["parts"])
    whole = 3 * shared * sizes["whole"]["parameters"]
    assert parts <= sent["parts_batch"] <= most * parts
    assert whole <= sent["whole_batch"] <= most * whole


def begun(out: Path, phase: str) -> bool:
    """Whether a phase has begun; parts that are trained are others than at first."""
    if phase != "merge":
        return bool(list(out.glob(PHASES[phase])))
    plan, part = out / "parts" / "plan.json", out / "parts" / "part1.onnx"
    return part.exists() and part.stat().st_mtime > plan.stat().st_mtime + 1


@pytest.mark.parametrize(("end", "phase", "way"), ALL, ids=lambda value: getattr(value, "__name__", value))
def test_the_result_is_that_of_a_run_without(
    end: End, phase: str, way: str, model: Path, alone: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "out"
    every = ONCE if end is warn_worker else EVERY
    options = ("--engine", "ray", *WAYS[way], "--checkpoint-every", every)
    with nullcontext(request.getfixturevalue("sound")) if end in SPARES else nodes() as cluster:
        given = command(model, out, *options, "--address", cluster.address)
        with subprocess.Popen(given, cwd=ROOT, stderr=subprocess.PIPE, text=True) as fit:
            while not begun(out, phase):
                assert fit.poll() is None, "it ended before anything was"
                time.sleep(0.01)
            if phase == "whole" and way != "1":
                assert sum(bool(workers(node)) for node in cluster.worker_nodes) > 1
            end(cluster, fit.pid)
            _, said = fit.communicate(timeout=900)
    assert "Traceback" not in said
    if phase != "whole" or end in (*GOES_ON, end_driver):  # the whole may bring its result before the end is noticed
        assert (fit.returncode == 0) == (end in GOES_ON), said
    if end in GOES_ON and phase == "whole":
        steps = [int(step) for step in re.findall(r"resumed at step (\d+)", said)]
        assert steps
        assert end is not warn_worker or steps[0] > ONCE, "it ended without a checkpoint"
    if fit.returncode != 0:
        if end is not end_driver and phase != "merge":
            assert said.rstrip().endswith("to go on: give the same command with --resume."), said
        again = command(model, out, *options, "--address", request.getfixturevalue("sound").address, "--resume")
        done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, done.stderr
        assert "resumed at step" in done.stderr
    check_same(out, alone, way)
