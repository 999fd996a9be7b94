"""The page of forms has all of them, and what it says of some of them is so."""

from __future__ import annotations

import pytest
import torch

from scripts.forms import PAGE, row
from tests.networks.forms import FORMS, judge

torch.set_num_threads(1)  # several threads are slow where other work shares the cores
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| a module |")]
SLICE = (
    "an embedding with sparse gradients", "an embedding of bounded norms", "called with a dictionary",
    "returns a loss alone", "returns None beside a tensor", "returns a cache beside a tensor", "stochastic depth",
    "tied weights", "parameters in a list", "a layer that is called twice, one in place", "packed sequences",
    "the last states of packed sequences", "a transformer and a mask", "convolutions",
    "an adapter beside a frozen layer", "gradient checkpointing", "a forward hook", "weight norm", "pruned weights",
    "a buffer that is counted up", "double precision",
)  # fmt: skip


def test_the_page_has_all_forms() -> None:
    assert [line.split(" | ")[0].removeprefix("| ") for line in ROWS] == list(FORMS)


@pytest.mark.parametrize("form", SLICE)
def test_a_form_is_as_the_page_says(form: str) -> None:
    """Divided or refused, in the same words; as near to the mean and to the module's gradients as rounding allows."""
    verdict, said = judge(form), ROWS[list(FORMS).index(form)]
    assert verdict.gradient < 1e-5
    assert verdict.mean < 1e-5
    assert row(form, verdict).split("|")[4:] == said.split("|")[4:]
