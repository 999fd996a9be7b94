"""The light models, whose weights take seconds to draw: the tests of one follow each other and share it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import pytest
from onnx import ModelProto

import models

HEAVY = ("vgg19", "zfnet512")
"""Plain chains with bvlc_alexnet's operators and many more weights; tests of single operators leave them out."""
DIFFERENT = tuple(name for name in models.light_names() if name not in HEAVY)


@lru_cache(maxsize=1)
def light(name: str) -> ModelProto:
    """A light model, which no test may change."""
    return models.light(name)


def grouped(names: Iterable[str], *others: object) -> list[Any]:
    """Parameters of a test, each light model's in the group of tests that one process runs one after the other."""
    return [pytest.param(name, *others, marks=pytest.mark.xdist_group(f"light_{name}")) for name in names]
