"""Parts and whole in torchrun's ranks: the curve is that of one process with the same global batch, whoever ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from scripts.cluster.by_hand import STEPS, Found
from scripts.cluster.links import linked

PROGRAM = ["-m", "scripts.cluster.by_hand"]
RANKS = 4
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
ANEW = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it torchrun of torch 2.13 tells ranks that start again where those before them listened."""
MACHINE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
"""What runs a command whose processes all end with it, as those of a machine do; needs root."""
End = Callable[["subprocess.Popen[str]", int], None]
"""What ends something of torchrun's, or a rank by its id."""
PASSES = {"ddp": 2, "fsdp": 3}
"""How often weights or gradients go round in a step. A reduce-scatter of gloo is an all-reduce."""


def by_ranks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TORCHRUN, *PROGRAM, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, *PROGRAM, str(folder), "alone"], check=True)
    found: Found = torch.load(folder / "alone0.pt")
    return found


def check_same(folder: Path, way: str, alone: Found) -> list[int]:
    """Check curves and weights of all ranks; return the bytes of the whole's steps."""
    (*parts, whole), state, _ = alone
    assert max(whole) > 2 * min(whole)
    for rank in range(RANKS):
        curves, own, marks = torch.load(folder / f"{way}{rank}.pt")
        assert curves == [pytest.approx(parts[rank // 2], rel=1e-5), pytest.approx(whole, rel=1e-5)]
        assert own.keys() == state.keys()
        for key, value in state.items():
            torch.testing.assert_close(own[key], value, rtol=1e-4, atol=1e-5)
    return [after - before for before, after in pairwise(marks)]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_parts_on_two_ranks_each_and_the_whole_on_four(way: str, tmp_path: Path, alone: Found) -> None:
    """On a machine without any other traffic, which the kernel counts: headers and acknowledgements, too."""
    with linked(1, None) as (machine,):
        done = subprocess.run(
            [*machine, *TORCHRUN, *PROGRAM, str(tmp_path), way],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    sizes = {key: tensor.nbytes for key, tensor in alone[1].items() if key != "lm_head.weight"}  # which is tied
    for count in check_same(tmp_path, way, alone):
        assert count == pytest.approx(1.1 * PASSES[way] * (RANKS - 1) * sum(sizes.values()), rel=0.1)


def end_rank(_: subprocess.Popen[str], rank: int) -> None:
    os.kill(rank, signal.SIGKILL)


def end_machine(machine: subprocess.Popen[str], _: int) -> None:
    machine.kill()


@pytest.mark.parametrize(
    ("way", "end", "step"),
    [("ddp", end_rank, 3), ("fsdp", end_rank, STEPS + 3), ("ddp", end_machine, STEPS + 3), ("fsdp", end_machine, 3)],
)
def test_what_is_ended_goes_on(way: str, end: End, step: int, tmp_path: Path, alone: Found) -> None:
    """A rank, which torchrun starts again with the others, or all; then the same command goes on."""
    own = MACHINE if end is end_machine else []
    command = [*own, *TORCHRUN, "--max-restarts=1", *PROGRAM, str(tmp_path), way, "--wait-at", str(step)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **ANEW}) as torchrun:
        while not (tmp_path / "pid").exists():
            assert torchrun.poll() is None, "it ended before anything was"
            time.sleep(0.05)
        end(torchrun, int((tmp_path / "pid").read_text()))
        _, said = torchrun.communicate()
    if end is end_machine:
        assert torchrun.returncode == -signal.SIGKILL
        assert not list(tmp_path.glob("*.pt"))
        said = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr
    else:
        assert torchrun.returncode == 0, said
    assert f"goes on at step {step - 1}" in said
    check_same(tmp_path, way, alone)


def test_ranks_that_disagree_say_so(tmp_path: Path) -> None:
    other = by_ranks(str(tmp_path), "ddp", "--seeds", "0", "0", "1")
    assert other.returncode != 0
    assert "rank 2 has another 'wte.weight' than rank 0; give all ranks the same weights" in other.stderr
    uneven = by_ranks(str(tmp_path), "ddp", "-k", "3")
    assert uneven.returncode != 0
    assert "3 parts can't be shared out evenly among 4 processes; start 3, or twice as many" in uneven.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("apart", "ranks 0 and 1 share part 0, but hold other weights of it; let DistributedDataParallel or"),
        ("joined", "parts 0 and 1 have learned the same weights: what trains them has joined their ranks; give"),
    ],
)
def test_parts_that_ranks_train_in_the_wrong_company_are_refused(way: str, said: str) -> None:
    done = subprocess.run([*TORCHRUN, "-m", "scripts.cluster.misled", way], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(said) == RANKS
