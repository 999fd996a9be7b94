"""Tests and times training on a GPU within a few minutes: the tests marked gpu, every engine, and one run of `fit`.

What is done first is worth most, and takes no more than half of the time that is left. What the time didn't suffice for
is left out, and named; what was measured by then is in the files. On a CPU all networks are scaled down: a trial of the
script itself, which says nothing about speed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch.nn import functional as F
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnxpart
from models import cifar10_net, lenet, regression_mlp
from onnxpart.merging.cross_weights import ZERO
from onnxpart.torch.data.batch import Batch
from onnxpart.torch.runs import fit_report
from onnxpart.torch.runs.fit import fit
from onnxpart.torch.runs.outcome import Fit
from onnxpart.torch.runs.progress import RunProgress
from onnxpart.torch.runs.recipe import Recipe
from onnxpart.torch.runs.task import RunOptions
from onnxpart.torch.training.engine import device_of
from onnxpart.torch.training.settings import Settings
from scripts.bench_engines import Network, images, rows
from scripts.paper.data import Windows, text
from scripts.paper.gpt import entropy, gpt
from scripts.paper.run import add
from scripts.paper.vision import exported, resnet, small_resnet

ROOT = Path(__file__).resolve().parents[1]
KS = (2, 4, 8)
SPEEDS = "engines.jsonl"
_AGAIN = 2.0
"""Seconds until what doesn't end is told so again."""


@dataclass(frozen=True)
class Text:
    """The language experiment: the transformer, windows in an epoch, the batch, and the epochs of the whole."""

    width: int
    heads: int
    blocks: int
    length: int
    windows: int
    batch: int
    epochs: int


LARGE, SMALL = Text(1024, 16, 8, 256, 2048, 64, 20), Text(32, 4, 1, 16, 64, 16, 5)


def tokens(length: int, kinds: int, count: int) -> Batch:
    """Return random tokens [count, length], and those that follow them."""
    found = torch.randint(kinds, (count, length + 1), generator=torch.Generator().manual_seed(0))
    return (found[:, :-1],), found[:, 1:]


def vectors(inputs: int, count: int) -> Batch:
    """Return random vectors [count, inputs], and a number for each."""
    x = torch.randn(count, inputs, generator=torch.Generator().manual_seed(0))
    return (x,), x.sum(1, keepdim=True)


def networks(large: bool) -> list[Network]:
    """Return what is timed, from small to large."""
    batches = (100, 128, 64, 8, 256) if large else (4, 2, 2, 2, 4)
    length, blocks, widths = (512, 12, (768, 1536)) if large else (16, 2, (32, 64))
    hidden, side, build = (8192, 224, partial(resnet, 50)) if large else (64, 32, partial(small_resnet, 16))
    return [
        Network("LeNet", lenet, images(1, 28, 28), batches[0], KS),
        Network("the paper's for CIFAR-10", cifar10_net, images(3, 24, 24), batches[1], KS),
        Network(
            "ResNet-50" if large else "a small ResNet", partial(exported, build, 0, side), images(3, side, side),
            batches[2], KS,
        ),
        *(
            Network(
                f"GPT, {blocks} blocks, width {width}",
                partial(gpt, 0, 256, length, width, max(width // 64, 8), blocks),
                partial(tokens, length, 256), batches[3], KS, entropy,
            )
            for width in widths
        ),
        Network(
            f"MLP of {hidden:,}", partial(regression_mlp, 0, 256, (hidden,) * 3), partial(vectors, 256), batches[4], KS,
            F.mse_loss,
        ),
    ]  # fmt: skip


def windows(size: Text) -> tuple[TensorDataset, TensorDataset]:
    """Return windows of Python's help texts with the characters that follow, to learn and to test."""
    learn, test, _ = text()
    return (
        _stacked(Windows(learn, size.length, size.batch, size.windows)),
        _stacked(Windows(test, size.length, size.batch, size.windows // 8, random=False)),
    )


def _stacked(found: Windows) -> TensorDataset:
    batches = list(found.epoch(0))
    return TensorDataset(torch.cat([x for (x,), _ in batches]), torch.cat([y for _, y in batches]))


def large_text() -> tuple[TensorDataset, TensorDataset]:
    """Return the windows of the experiment on a GPU."""
    return windows(LARGE)


def small_text() -> tuple[TensorDataset, TensorDataset]:
    """Return those of the experiment on a CPU."""
    return windows(SMALL)


def tested(seconds: float) -> str:
    """Run the tests marked gpu, and return what pytest says of them.

    :raises RuntimeError: when one fails.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/torch/training"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout.strip().splitlines()[-1]


def timed(network: Network, *, settings: Settings, device: torch.device, out: Path, apart: bool) -> str:
    """Time the engines on a network, and add a line for each number of parts to the results."""
    told = []
    for row in rows(network, 5, settings, device, processes=apart):
        add(out / SPEEDS, {"kind": "engines", **asdict(row), "settings": asdict(settings), "device": name_of(device)})
        gains = {name: getattr(row, name) for name in ("ideal", "series", "fused", "processes")}
        shown = ", ".join(f"{name} {gain:.2f}" for name, gain in gains.items() if gain is not None)
        told.append(f"K = {row.k}: {shown}")
    return "; ".join(told)


def trained(size: Text, settings: Settings, out: Path) -> str:
    """Train the language model whole, and by the recipe in four parts; return which was sooner as good.

    The report is written as soon as there is something to report, and anew with each control; `metrics.jsonl` beside it
    has each epoch when it ends.
    """
    _, _, kinds = text()
    model = onnxpart.load(gpt(0, kinds, size.length, size.width, size.heads, size.blocks))
    data = f"scripts.gpu:{'large' if size is LARGE else 'small'}_text"
    options = RunOptions(data, "scripts.paper.gpt:entropy", settings, batch_size=size.batch, every_minutes=None)
    recipe, folder = Recipe(), out / "language"

    def report(found: Fit) -> dict[str, Any]:
        name = f"transformer of {size.blocks} blocks, width {size.width}"
        return fit_report.report(found, options, name, recipe, ZERO)

    with RunProgress(folder, Console(quiet=True)) as progress:
        found = fit(
            model, options, folder, lambda stage, task, epochs: progress.stage(stage, epochs, task.loss.metric),
            k=4, recipe=recipe, baseline=True, force=True,
            on_found=lambda so_far: fit_report.save(report(so_far), folder, {}),
        )  # fmt: skip
    return fit_report.compared(report(found)["as_good"])


def name_of(device: torch.device) -> str:
    """Return the name of a GPU, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class OutOfTimeError(BaseException):
    """An item has had its time. It is no Exception, so that nothing within takes it for a failure of its own."""


@contextmanager
def until(seconds: float) -> Iterator[None]:
    """Let what is within end after so many seconds, at the next of several calls where the first one is lost.

    Python drops what is raised while it collects garbage.

    :raises OutOfTimeError: then.
    """

    def end(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main(
    minutes: Annotated[float, typer.Option(min=0, help="After which it stops, and says what it left out.")] = 8.0,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")] = Path("gpu"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:i.")] = "auto",
) -> None:
    """Test and time training on a GPU; on a CPU at sizes scaled down."""
    console, end, place = Console(soft_wrap=True), time.monotonic() + 60 * minutes, device_of(device)
    large = place.type == "cuda"
    size, settings = (LARGE if large else SMALL), Settings(1, lr=1e-4, amp=large, device=str(place))
    learning = replace(settings, epochs=size.epochs, optimizer="adamw", lr=3e-4 if large else 1e-3)
    together = partial(timed, settings=settings, device=place, out=out, apart=False)
    apart = partial(timed, settings=replace(settings, epochs=2), device=place, out=out, apart=True)
    engines, processes = (
        [(f"{name}: {each.name}", partial(call, each)) for each in networks(large)]
        for name, call in (("engines", together), ("processes", apart))
    )
    small = [replace(each, name=f"{each.name}, compiled", parts=KS[:1]) for each in networks(large)[:2]]
    compiled = partial(together, settings=replace(settings, compile=True))
    items: list[tuple[str, Callable[[], str]]] = [
        ("tests", lambda: tested((end - time.monotonic()) / 2)),
        engines[0],
        ("experiment: language", lambda: trained(size, learning, out)),
        *engines[1:],
        *((f"engines: {each.name}", partial(compiled, each)) for each in small if large),  # CPUs need a compiler
        *processes,
    ]
    left_out, failed = [], []
    console.print(f"{name_of(place)}; results go to {out}")
    for name, item in items:
        if time.monotonic() >= end:
            left_out.append(name)
            continue
        started = time.monotonic()
        try:
            with until((end - started) / 2):
                told = item()
        except (OutOfTimeError, subprocess.TimeoutExpired):
            left_out.append(f"{name} (begun)")
        except (RuntimeError, onnxpart.OnnxpartError) as error:
            failed.append(name)
            console.print(f"{name} failed: {error}")
        else:
            console.print(f"{name}, {time.monotonic() - started:.0f} s: {told}")
    if left_out:
        console.print(f"left out for want of time: {', '.join(left_out)}")
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
