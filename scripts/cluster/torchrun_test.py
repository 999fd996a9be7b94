"""Parts and whole in torchrun's ranks: the curve is that of one process with the same global batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

PROGRAM = ["-m", "scripts.cluster.by_hand"]
RANKS = 4
Found = tuple[list[list[float]], dict[str, Tensor]]


def by_ranks(*arguments: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    return subprocess.run([*torchrun, *PROGRAM, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, *PROGRAM, str(folder), "alone"], check=True)
    found: Found = torch.load(folder / "alone0.pt")
    return found


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_parts_on_two_ranks_each_and_the_whole_on_four(way: str, tmp_path: Path, alone: Found) -> None:
    done = by_ranks(str(tmp_path), way)
    assert done.returncode == 0, done.stderr
    (*parts, whole), state = alone
    assert max(whole) > 2 * min(whole)
    for rank in range(RANKS):
        curves, own = torch.load(tmp_path / f"{way}{rank}.pt")
        assert curves == [pytest.approx(parts[rank // 2], rel=1e-5), pytest.approx(whole, rel=1e-5)]
        assert own.keys() == state.keys()
        for key, value in state.items():
            torch.testing.assert_close(own[key], value, rtol=1e-4, atol=1e-5)


def test_ranks_that_disagree_say_so(tmp_path: Path) -> None:
    other = by_ranks(str(tmp_path), "ddp", "--seeds", "0", "0", "1")
    assert other.returncode != 0
    assert "rank 2 has another 'wte.weight' than rank 0; give all ranks the same weights" in other.stderr
    uneven = by_ranks(str(tmp_path), "ddp", "-k", "3")
    assert uneven.returncode != 0
    assert "3 parts can't be shared out evenly among 4 processes; start 3, or twice as many" in uneven.stderr
    assert list(tmp_path.iterdir()) == []
