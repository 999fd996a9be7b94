"""Packages that aren't installed."""

from __future__ import annotations

from importlib import import_module

import pytest

from onnxpart.cli.extras import needs
from onnxpart.errors import UsageError


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(UsageError, match=r"^flight needs the package no_wings; .* `pip install '\.\[air\]'`\.$"):  # noqa: SIM117
        with needs("flight", "air"):
            import_module("no_wings.left")


def test_a_module_of_our_own_that_is_missing_is_a_fault() -> None:
    with pytest.raises(ModuleNotFoundError), needs("flight", "air"):
        import_module("onnxpart.no_wings")
