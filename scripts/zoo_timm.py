"""Some 300 of timm's models with random weights, chosen from its registry by one rule."""

import json
import re
import sys
from itertools import zip_longest
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

COUNT, LARGE = 300, 60_000_000
CLASSES = 1000
"""Of models that come without a classifier: their output would be all of their features."""
BATCH, SIDES = 2, (128, 112, 160, 224)
"""Sides that are tried, in this order, before the one that the model is made for."""
NO_FAMILY = re.compile(r"^(tf|legacy)_|[\d_].*")
"""What isn't the family in the name of a model."""


def names() -> list[str]:
    """Of each family of each module the smallest model, then the second smallest, until there are `COUNT`.

    A family is what a name says in front of the first digit or underline; timm's own test models are left out. Of a
    module without a model of at most `LARGE` parameters the smallest is taken, else no larger ones.
    """
    chosen: list[list[str]] = []
    for models in _sizes().values():
        families: dict[str, list[str]] = {}
        for size, name in models:
            if size <= LARGE or name == models[0][1]:
                families.setdefault(NO_FAMILY.sub("", name), []).append(name)
        chosen += families.values()
    return [name for turn in zip_longest(*chosen) for name in turn if name][:COUNT]


def _sizes() -> dict[str, list[tuple[int, str]]]:
    """Parameters and name of every model by module, the smallest first; counted once per environment, in 10 minutes."""
    path = Path(sys.prefix) / f"zoo-timm-{timm.__version__}.json"
    if not path.exists():
        found: dict[str, list[tuple[int, str]]] = {}
        for module in timm.list_modules():
            for name in timm.list_models(module=module):
                if not name.startswith("test_"):
                    found.setdefault(module, []).append((_parameters(name), name))
        path.write_text(json.dumps({module: sorted(models) for module, models in found.items()}))
    sizes: dict[str, list[tuple[int, str]]] = json.loads(path.read_text())
    return sizes


def _parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def family(name: str) -> str:
    """The module of timm that makes the model."""
    module: str = timm.model_entrypoint(name).__module__
    return module.rsplit(".", 1)[-1]


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a model with random weights, and images of the first of some sizes that it takes."""
    config = timm.get_pretrained_cfg(name)
    native = config.input_size[-1] if config else SIDES[-1]
    for side in (*(s for s in SIDES if s < native), native):
        extra: dict[str, int] = {} if config and config.num_classes else {"num_classes": CLASSES}
        if config and config.fixed_input_size and side != native:
            extra["img_size"] = side
        images = torch.randn(BATCH, 3, side, side)
        try:
            model: nn.Module = timm.create_model(name, **extra).eval()
            with torch.no_grad():
                model(images)
        except Exception:  # a model refuses a size in any way
            if side == native:
                raise
        else:
            break
    return model, {"x": images}
