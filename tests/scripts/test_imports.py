"""The figures on imports, on graphs small enough to count."""

from __future__ import annotations

import networkx as nx
import pytest

from scripts import imports

ORDER = [frozenset({"onnxpart.cli"}), frozenset({"onnxpart.frontend", "onnxpart.analysis"}), frozenset({"onnxpart.ir"})]


def measure(*edges: tuple[str, str]) -> imports.Imports:
    """The figures where these modules import those."""
    return imports.measure(nx.DiGraph([(f"onnxpart.{a}", f"onnxpart.{b}") for a, b in edges]), ORDER)


def test_levels_are_modules_on_the_longest_way() -> None:
    found = measure(("cli.app", "frontend.load"), ("cli.app", "ir.model"), ("frontend.load", "ir.model"))
    assert found == imports.Imports(3, 3, (), ())


def test_a_circle_is_one_level() -> None:
    found = measure(("cli.app", "ir.a"), ("ir.a", "ir.b"), ("ir.b", "ir.a"))
    assert (found.levels, found.circles) == (2, (("onnxpart.ir.a", "onnxpart.ir.b"),))


@pytest.mark.parametrize(
    ("edge", "upward"),
    [
        (("ir.model", "frontend.load"), True),
        (("analysis.walk", "frontend.load"), True),
        (("analysis.walk", "analysis.labels"), False),
        (("cli.app", "ir.model"), False),
    ],
    ids=["upwards", "sideways", "within", "downwards"],
)
def test_an_import_runs_upwards_between_packages_only(edge: tuple[str, str], upward: bool) -> None:
    assert bool(measure(edge).upwards) == upward


def test_the_contract_names_the_packages_of_this_checkout() -> None:
    packages = {".".join(module.split(".")[:2]) for module in imports.imported()} - {imports.PACKAGE}
    assert packages == frozenset().union(*imports.layers())
