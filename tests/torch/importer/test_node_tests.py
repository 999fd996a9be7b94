"""ONNX's own node tests: none is silently wrong, and what passes is what `models/node_tests.md` says."""

import pytest
import torch

from onnxpart.torch.importer.operators import elementwise
from scripts.node_tests import PAGE, cases, lists, run, run_all


def test_the_page_says_what_passes_and_why_the_rest_does_not() -> None:
    results = run_all()
    assert not [result for result in results if result.status in ("wrong", "crashed")]
    assert PAGE.read_text().endswith(lists(results)), "run scripts/node_tests, look at the difference, and commit it"


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(elementwise._UNARY, "Tanh", torch.sin)  # noqa: SLF001
    by_name = {case.name: case for case in cases()}
    assert run(by_name["test_tanh"]).status == "wrong"
    assert run(by_name["test_sin"]).status == "passed"
