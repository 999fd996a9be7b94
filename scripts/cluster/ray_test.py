"""Two raylets on this machine, two parts of two workers each, then the whole on all four: as in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ray.cluster_utils import Cluster

from onnxpart.torch import export
from scripts.cluster.alike import check_alike
from tests.networks.plain import CLASSES, GPT2, NETWORKS

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, MERGE_AT = 30, 3


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A transformer without dropout, of which each worker would draw its own, and tokens whose sum tells the class."""
    torch.manual_seed(0)
    module, (_, draw) = GPT2(), NETWORKS["gpt2"]
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    tokens = torch.cat([draw() for _ in range(8)])
    export(module, tokens[:2], tmp_path / "model.onnx")
    name = onnx.load(tmp_path / "model.onnx").graph.input[0].name
    samples = {name: tokens.numpy(), "target": (tokens.sum(1) % CLASSES).numpy()}
    np.savez(tmp_path / "data.npz", **samples, **{f"test_{key}": values[:9] for key, values in samples.items()})  # type: ignore[arg-type]
    return tmp_path / "model.onnx"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and another node, of two processors each."""
    node: dict[str, Any] = {"num_cpus": 2, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=node)
    found.add_node(**node)
    try:
        yield found
    finally:
        found.shutdown()  # type: ignore[no-untyped-call]


def command(model: Path, out: str, *options: object) -> list[str]:
    given = ("--data", f"npz:{model.parent / 'data.npz'}", "--epochs", EPOCHS, "--merge-at", MERGE_AT, "--lr", 0.01,
             "--optimizer", "sgd", "--recipe", "paper", "--batch-size", 10, "--device", "cpu", "--checkpoint-every", 2,
             "-o", model.parent / out)  # fmt: skip
    return [sys.executable, "-m", "onnxpart", "fit", str(model), *map(str, given), *map(str, options)]


def on(cluster: Cluster) -> tuple[object, ...]:
    return "--engine", "ray", "--address", cluster.address, "--workers-per-part", 2


def workers(cluster: Cluster) -> list[int]:
    """Process ids of Ray Train's workers on the cluster."""
    nodes = cluster.list_all_nodes()  # type: ignore[no-untyped-call]
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    found = subprocess.run(
        ["ps", "--ppid", ",".join(map(str, raylets)), "-o", "pid=,args="], capture_output=True, text=True, check=True
    )
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "RayTrainWorker" in line]


@pytest.fixture
def alone(model: Path) -> Path:
    """The run in one process."""
    subprocess.run(command(model, "alone", "--engine", "series"), check=True, cwd=ROOT)
    return model.parent / "alone"


def test_two_workers_of_each_part_and_four_of_the_whole_train_like_one_process(
    model: Path, alone: Path, cluster: Cluster
) -> None:
    """With a worker of the whole that is killed."""
    with subprocess.Popen(command(model, "many", *on(cluster)), cwd=ROOT, stderr=subprocess.PIPE, text=True) as fit:
        while not list(model.parent.glob("many/checkpoints/whole/part0-*")):
            assert fit.poll() is None, "it ended before a worker was killed"
            time.sleep(0.02)
        os.kill(workers(cluster)[-1], signal.SIGKILL)
        _, said = fit.communicate()
    assert fit.returncode == 0, said
    assert "resumed at step" in said
    found = check_alike(alone, model.parent / "many", 1e-3, 1e-4)
    sizes, sent = found["sizes"], found["traffic"]
    assert sent["parts_batch"] == 2 * 4 * sum(part["parameters"] for part in sizes["parts"])
    assert sent["whole_batch"] == sent["data_parallel_batch"] == 6 * 4 * sizes["whole"]["parameters"]
