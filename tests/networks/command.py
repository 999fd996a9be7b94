"""The command line as a user calls it, and what its runs leave."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner, Result

from onnxpart import arrays
from onnxpart.cli import app as cli

MODULE = '''
import os, signal
import numpy as np
import torch
from torch.utils.data import Dataset

class Samples(Dataset):
    """Those of data.npz; at the STOP-th that is read to learn the user presses Ctrl-C."""

    read = 0

    def __init__(self, prefix=""):
        self.prefix = prefix
        with np.load("data.npz") as file:
            self.arrays = {name: file[prefix + name] for name in ("x", "target")}

    def __len__(self):
        return len(self.arrays["x"])

    def __getitem__(self, i):
        Samples.read += not self.prefix
        if Samples.read == int(os.environ.get("STOP", -1)):
            os.kill(os.getpid(), signal.SIGINT)
        return self.arrays["x"][i], int(self.arrays["target"][i])

def samples():
    return Samples()

def both():
    return Samples(), Samples("test_")

class Stream:
    """The samples of both in batches of ten, in their order, over and over; it can tell where it is."""

    at = 0
    begins = 0

    def __iter__(self):
        found = Samples()
        begins, self.begins = self.begins, 0
        for i in range(begins, len(found) // 10):
            self.at = i + 1
            yield torch.utils.data.default_collate([found[10 * i + j] for j in range(10)])

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.begins = state["at"]

def stream():
    return Stream()

def generator():
    yield from Stream()

def failing():
    yield from Stream()
    raise KeyError("lost")

def hungry(output, target):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

def mean_absolute(output, target):
    return (output - target[:, None]).abs().mean()
'''
FIELDS = {"k", "order", "seed", "shares", "duplicated", "replicated", "blocked", "mean"}


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def run_json(*arguments: object, code: int = 0) -> Any:
    result = run(*arguments, "--json", code=code)
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def process(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that finds this checkout, wherever it runs."""
    root = str(Path(cli.__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=120,
        env=environment,
    )


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def equal(first: str, second: str) -> bool:
    one, other = arrays(first), arrays(second)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
