"""Models built here, from nothing but a seed: the paper's networks, small goldens, the light models."""

from collections.abc import Callable
from functools import partial

from onnx import ModelProto

from models.cifar10 import cifar10_net
from models.figure1 import figure1
from models.golden import GOLDEN
from models.lenet import lenet
from models.light import light, light_names
from models.mlp import regression_mlp

BUILDERS: dict[str, Callable[[], ModelProto]] = {
    "lenet": lenet,
    "cifar10": cifar10_net,
    "figure1": figure1,
    "regression_mlp": regression_mlp,
    **GOLDEN,
    **{f"light_{name}": partial(light, name) for name in light_names()},
}

__all__ = ["BUILDERS", "GOLDEN", "cifar10_net", "figure1", "lenet", "light", "light_names", "regression_mlp"]
