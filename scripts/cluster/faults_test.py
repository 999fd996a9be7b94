"""Who is ended in which phase of `fit` on a Ray cluster: it goes on, or one command resumes it, to the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from ray.cluster_utils import Cluster

from models import BUILDERS

ROOT = Path(__file__).resolve().parents[2]
PHASES = {"parts": "checkpoints/parts/*/part1-*", "merge": "", "whole": "checkpoints/whole/part0-*"}
"""By phase, the checkpoints that show that it has begun."""


@contextmanager
def nodes() -> Iterator[Cluster]:
    """A head that trains nothing, and two nodes with room for a part each."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            found.add_node(num_cpus=1, include_dashboard=False)
        yield found
    finally:
        found.shutdown()  # type: ignore[no-untyped-call]


def pid(node: Any, kind: str) -> int:
    found: int = node.all_processes[kind][0].process.pid
    return found


def tasks(node: Any) -> list[int]:
    """Process ids of the tasks on a node."""
    listed = subprocess.run(
        ["ps", "--ppid", str(pid(node, "raylet")), "-o", "pid=,args="], capture_output=True, text=True, check=False
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "ray::_task" in line]


def end_worker(cluster: Cluster, _: int) -> None:
    os.kill(next(task for node in cluster.worker_nodes for task in tasks(node)), signal.SIGKILL)


def end_node(cluster: Cluster, _: int) -> None:
    """The machine of a task, where there is one, with all that runs on it."""
    node = max(cluster.worker_nodes, key=lambda node: len(tasks(node)))
    for process in (pid(node, "raylet"), *tasks(node)):
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


GOES_ON = end_worker, end_node
MAY_GO_ON = (*GOES_ON, end_head)
"""A task that ends within the half minute that a head has to come back brings its result."""
ALL = [
    (end, phase) for end in (*GOES_ON, end_head, end_raylet, end_driver, warn_driver) for phase in PHASES
    if (end, phase) != (end_worker, "merge")  # when none is at work
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of convolutions, and samples."""
    folder, draw = tmp_path_factory.mktemp("faults"), np.random.default_rng(0)
    proto = BUILDERS["chain"]()
    onnx.save_model(proto, folder / "model.onnx")
    value = proto.graph.input[0]
    shape = [dim.dim_value or 60 for dim in value.type.tensor_type.shape.dim]
    kinds = proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    samples: dict[str, Any] = {value.name: draw.random(shape, np.float32), "target": draw.integers(0, kinds, shape[0])}
    np.savez(folder / "data.npz", **samples, **{f"test_{name}": array[:10] for name, array in samples.items()})
    return folder / "model.onnx"


def command(model: Path, out: Path, *options: object) -> list[str]:
    given = ("--data", f"npz:{model.parent / 'data.npz'}", "--epochs", 200, "--merge-at", 120, "--optimizer", "sgd",
             "--recipe", "paper", "--batch-size", 10, "--device", "cpu", "--checkpoint-every", 50,
             "-o", out)  # fmt: skip
    return [sys.executable, "-m", "onnxpart", "fit", str(model), *map(str, given), *map(str, options)]


def on(cluster: Cluster) -> tuple[object, ...]:
    return "--engine", "ray", "--address", cluster.address


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, np.ndarray]:
    """The weights of a run in one process."""
    subprocess.run(command(model, model.parent / "alone", "--engine", "series"), check=True, cwd=ROOT)
    return weights(model.parent / "alone")


def weights(out: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(out / "trained.onnx").graph.initializer}


def begun(out: Path, phase: str) -> bool:
    """Whether a phase has begun; parts that are trained are others than at first."""
    if phase != "merge":
        return bool(list(out.glob(PHASES[phase])))
    plan, part = out / "parts" / "plan.json", out / "parts" / "part1.onnx"
    return part.exists() and part.stat().st_mtime > plan.stat().st_mtime + 1


@pytest.mark.parametrize(("end", "phase"), ALL, ids=lambda value: getattr(value, "__name__", value))
def test_the_weights_are_those_of_a_run_without(
    end: Callable[[Cluster, int], None], phase: str, model: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with nodes() as cluster:
        fit = subprocess.Popen(command(model, out, *on(cluster)), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        with fit:
            while not begun(out, phase):
                assert fit.poll() is None, "it ended before anything was"
                time.sleep(0.01)
            end(cluster, fit.pid)
            _, said = fit.communicate(timeout=300)
    assert "Traceback" not in said
    assert fit.returncode == 0 if end in GOES_ON else fit.returncode != 0 or end in MAY_GO_ON, said
    if fit.returncode != 0:
        if end is not end_driver and phase != "merge":
            assert said.rstrip().endswith("to go on: give the same command with --resume."), said
        with nodes() as cluster:
            again = command(model, out, *on(cluster), "--resume")
            done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "resumed at step" in done.stderr
    for name, array in weights(out).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
