"""The networks, their data, and what is tried with each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onnx import ModelProto
from torch import Tensor, nn
from torch.nn import functional as F

from models import cifar10_net, lenet, regression_mlp
from onnxpart.torch.training.settings import Settings
from scripts.paper import data
from scripts.paper.gpt import bits, entropy, gpt
from scripts.paper.method import Method, Rate, Run, Stage, Task
from scripts.paper.vision import exported, small_resnet, small_vit


def error(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the share of wrong classes."""
    return (logits.argmax(1) != classes).float().mean()


def mnist(seed: int, folder: Path | None) -> Task:
    """Section 3.1: LeNet."""
    name, learn, test = data.mnist(folder, 100, seed)
    settings = Settings(20, lr=0.05, momentum=0.9, device="cpu")
    return Task("mnist", "LeNet", name, "error", lenet, learn, test,
                F.cross_entropy, error, settings, every=1, drops=(0, 0), restart=0.5)  # fmt: skip


def cifar10(seed: int, folder: Path | None) -> Task:
    """Section 3.2: the network with normalisations and locally connected layers."""
    name, learn, test = data.colour_images(folder, 32, 384, seed)
    settings = Settings(52, lr=0.005, momentum=0.9, device="cpu")
    return Task("cifar10", "the paper's for CIFAR-10", name, "error", cifar10_net, learn, test,
                F.cross_entropy, error, settings, every=52, restart=0.5)  # fmt: skip


def regression(seed: int, _: Path | None) -> Task:
    """Linear outputs: by which angle a digit is turned."""
    learn, test = data.turned(50, seed)
    settings = Settings(24, optimizer="adam", lr=0.001, device="cpu")
    return Task("regression", "three hidden layers of 1,024 units", "angles of 4,000 turned MNIST digits",
                "mean squared error", partial(regression_mlp, inputs=196, hidden=(1024,) * 3), learn, test,
                F.mse_loss, F.mse_loss, settings, every=2, restart=0.5)  # fmt: skip


def reading(name: str, network: str, build: Callable[..., ModelProto], epochs: int, samples: int, seed: int,
            _: Path | None) -> Task:  # fmt: skip
    """A transformer that reads Python's help texts, character by character."""
    learn, test, kinds = data.text()
    length = 64
    settings = Settings(epochs, optimizer="adam", lr=0.001, device="cpu")
    return Task(name, network, "Python's help texts, by character", "bits per character",
                lambda s: build(s, kinds, length), data.Windows(learn, length, 16, samples, seed),
                data.Windows(test, length, 32, 256, random=False), entropy, bits, settings, every=2,
                restart=0.5)  # fmt: skip


language = partial(reading, "language", "a transformer of two blocks, width 256", gpt, 16, 480)
wide = partial(reading, "wide", "a transformer of two blocks, width 512", partial(gpt, width=512, heads=16), 16, 480)
wider = partial(
    reading, "wider", "a transformer of two blocks, width 1,024", partial(gpt, width=1024, heads=32), 16, 480
)
long = partial(reading, "long", "a transformer of two blocks, width 256, trained longer", gpt, 48, 480)
depth = partial(
    reading, "depth", "a transformer of twelve blocks, width 128", partial(gpt, width=128, heads=4, blocks=12), 32, 320
)


def vision(
    name: str, network: str, build: Callable[[], nn.Module], epochs: int, lr: float, seed: int, folder: Path | None
) -> Task:
    """Colour images as for section 3.2, to a network of today's kinds."""
    data_name, learn, test = data.colour_images(folder, 32, 1920, seed)
    settings = Settings(epochs, optimizer="adam", lr=lr, device="cpu")
    return Task(name, network, data_name, "error", partial(exported, build), learn, test,
                F.cross_entropy, error, settings, every=2, restart=0.5)  # fmt: skip


resnet = partial(vision, "resnet", "a ResNet of three blocks, 64 to 256 channels", small_resnet, 12, 0.001)
vit = partial(vision, "vit", "a vision transformer of two blocks, width 256", small_vit, 24, 0.0005)


def alone(epochs: int, rate: Rate) -> Run:
    """The whole, from the start."""
    return Run("whole", (Stage(1, epochs),), rate)


def merged(k: int, at: int, epochs: int, rate: Rate, edges: float = 0.0) -> Run:
    """Parts, merged at an epoch, and the whole from there on."""
    return Run("partition", (Stage(k, at), Stage(1, epochs - at)), rate, edges)


@dataclass(frozen=True)
class Plan:
    """What an experiment does: its task by seed, the runs, and the numbers of parts whose steps are timed.

    `blocks`: numbers of blocks with which they are timed, besides all. `diversity`: numbers of parts, and the epoch, at
    which the parts' beliefs are compared.
    """

    task: Callable[[int, Path | None], Task]
    runs: tuple[Run, ...]
    parts: tuple[int, ...]
    diversity: tuple[tuple[int, ...], int] = ((), 0)
    blocks: tuple[int, ...] = ()


def _table2() -> tuple[Run, ...]:
    """Original, duplicated, and both ways to begin small, ending every five epochs."""
    begin = (alone(52, "paper"), Run("duplicated", (Stage(2, 52),), "paper"))
    ends = [(Stage(2, at), Stage(1, 52 - at)) for at in range(0, 51, 5)]
    return (*begin, *(Run(method, stages, "paper") for method in ("partition", "widen") for stages in ends))


def recipe(*stages: tuple[int, ...], lr: float = 1.0, method: Method = "partition") -> Run:
    """What `fit` does by itself: (k, epochs) of each stage, and blocks, at a share of the task's rate."""
    found = tuple(Stage(*stage) for stage in stages)
    return Run("whole" if len(found) == 1 and not found[0].blocks else method, found, "recipe", lr=lr)


def fitted(epochs: int, *parts: int, lr: float = 1.0) -> tuple[Run, ...]:
    """What `fit` makes of so many epochs, for some numbers of parts, at a share of the task's rate."""
    return tuple(Run("fit", (Stage(k, epochs),), "recipe", lr=lr) for k in parts)


def _beside(epochs: int, after: int, rates: Sequence[float]) -> tuple[Run, ...]:
    """The whole at several rates, and for two thirds of the epochs; four and two parts, these also for as many epochs
    together with the whole; copies of one of two parts.
    """
    return (
        *(recipe((1, epochs), lr=lr) for lr in rates),
        *(recipe((k, epochs), (1, after)) for k in (2, 4)),
        recipe((2, epochs - after), (1, after)),
        recipe((1, epochs * 2 // 3)),
        recipe((2, epochs), (1, after), method="widen"),
        *fitted(epochs, 2),
    )


def _faster(epochs: int, ways: Sequence[tuple[int, int, int]]) -> tuple[Run, ...]:
    """The whole with a schedule that ends at 0, also a shorter one; and (k, epochs of the parts, of the whole)."""
    wholes = (alone(n, "cosine") for n in (epochs, epochs // 2, epochs // 4))
    return (*wholes, *(merged(k, before, before + after, "restart") for k, before, after in ways))


def _levels(*stages: tuple[int, int]) -> Run:
    """Stages of fewer and fewer parts: (k, epochs)."""
    return Run("levels", tuple(Stage(*stage) for stage in stages), "cosine")


def _rounds(k: int, rounds: int, each: int, after: int) -> Run:
    """Parts divided anew in every round."""
    return Run("rounds", (Stage(k, each),) * rounds + (Stage(1, after),), "cosine")


PLANS = {
    "mnist": Plan(
        mnist,
        (
            alone(20, "paper"),
            *(merged(k, at, 20, "paper") for k in (2, 5, 10) for at in (0, 10)),
            *_faster(20, ((2, 10, 5), (5, 10, 2))),
            *(merged(k, 6, 10, "cosine") for k in (2, 5)),
            *fitted(20, 2),
        ),
        (2, 5, 10),
        ((2, 5, 10), 10),
    ),
    "cifar10": Plan(
        cifar10,
        (
            *_table2(),
            *(merged(4, at, 52, "paper") for at in (40, 50)),
            *_faster(52, ()),
            *fitted(52, 2),
        ),
        (2, 4),
    ),
    "regression": Plan(
        regression,
        (
            *_faster(24, ((4, 8, 2), (4, 12, 4))),
            *(merged(k, 5, 8, "cosine") for k in (2, 4, 8)),
            merged(4, 6, 10, "cosine"),
            merged(4, 8, 24, "cosine"),
            *(merged(4, 5, 8, "cosine", edges) for edges in (0.1, 1.0)),
            *(merged(4, parts, epochs, "cosine", 1.0) for parts, epochs in ((6, 10), (8, 11))),
            _levels((4, 4), (2, 2), (1, 2)),
            _rounds(4, 3, 2, 2),
            *(recipe((1, 24), lr=lr) for lr in (1, 2, 4, 8)),
            *(recipe((1, n), lr=4) for n in (8, 12)),
            *(recipe((4, parts), (1, after)) for parts, after in ((3, 2), (5, 1), (5, 2), (8, 2))),
            *(recipe((4, 5), (1, 2), lr=lr) for lr in (2, 4)),
            recipe((2, 5), (1, 2)),
            *(recipe((8, parts), (1, after)) for parts, after in ((5, 1), (8, 1), (8, 2), (11, 3))),
            recipe((4, 5), (1, 2), method="widen"),
            *(recipe((k, 8), (1, 2), method="own order") for k in (4, 8)),
            *(recipe((16, parts), (1, after)) for parts, after in ((5, 1), (8, 1), (8, 2))),
            recipe((16, 4), (8, 4), (1, 2), method="levels"),
            recipe((8, 4), (4, 4), (1, 2), method="levels"),
            *fitted(24, 4, 8),
        ),
        (2, 4, 8, 16),
    ),
    "resnet": Plan(resnet, _beside(12, 3, (1, 2, 4)), (2, 4)),
    "vit": Plan(vit, _beside(24, 5, (1, 2, 0.5)), (2, 4)),
    "language": Plan(
        language,
        (
            *(recipe((1, 16), lr=lr) for lr in (1, 2, 4)),
            recipe((1, 12), lr=2),
            merged(4, 8, 16, "cosine"),
            *(recipe((4, parts), (1, after)) for parts, after in ((12, 3), (16, 3))),
            recipe((4, 16), (1, 3), lr=2),
            recipe((8, 16), (1, 3)),
            recipe((2, 12), (1, 3)),
            recipe((4, 16), (1, 3), method="widen"),
            recipe((4, 16), (1, 3), method="own order"),
            *fitted(16, 2),
        ),
        (2, 4, 8),
    ),
    "wide": Plan(
        wide,
        (
            *(recipe((1, 16), lr=lr) for lr in (1, 2, 0.5)),
            *(recipe((4, parts), (1, after)) for parts, after in ((10, 1), (12, 2), (16, 1), (16, 3))),
            recipe((8, 16), (1, 3)),
            recipe((8, 16), (1, 3), method="widen"),
            *(recipe((8, 8), (4, 8), (1, after), method="levels") for after in (3, 1)),
            *fitted(16, 4),
        ),
        (4, 8),
    ),
    "wider": Plan(
        wider,
        (
            *(recipe((1, 16), lr=lr) for lr in (1, 0.5, 0.25)),
            *(recipe((8, 16), (1, after), lr=0.5) for after in (1, 2)),
            recipe((8, 16), (1, 2)),
            recipe((8, 16), (1, 2), lr=0.5, method="widen"),
            *fitted(16, 8, lr=0.5),
        ),
        (4, 8),
    ),
    "long": Plan(
        long,
        (
            *(recipe((1, 48), lr=lr) for lr in (1, 2)),
            recipe((4, 48), (1, 8)),
            recipe((4, 36), (2, 12), (1, 8), method="levels"),
            recipe((4, 24), (2, 24), (1, 8), method="levels"),
            recipe((2, 40), (1, 8)),
            recipe((2, 48), (1, 8)),
            recipe((4, 48), (1, 8), method="widen"),
            *fitted(48, 2),
        ),
        (2, 4),
    ),
    "depth": Plan(
        depth,
        (
            recipe((1, 32)),
            *(recipe((1, 32, blocks), (1, 8), method="deepen") for blocks in (3, 1)),
            recipe((1, 32, 3), (1, 8), method="deepen from zero"),
            recipe((1, 40, 3), method="shallow"),
            recipe((2, 32, 3), (2, 0), (1, 8), method="deepen from zero"),
            recipe((1, 32, 3), (1, 8, 3), method="shallow"),
            *(recipe((1, 24), (1, 8), method="whole", lr=lr) for lr in (1, 2)),
            recipe((1, 32), lr=2),
            recipe((1, 20)),
        ),
        (2,),
        blocks=(1, 3),
    ),
}
