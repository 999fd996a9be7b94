"""Text and tables for people, and JSON for programs, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from models import BUILDERS
from onnxpart import analyse, load, plan, verify
from onnxpart.cli import tables
from onnxpart.inspection import outcomes
from onnxpart.inspection.sizes import measure
from onnxpart.planning.planner import partition


def text(table: Table) -> list[list[str]]:
    """The cells of a table, by row."""
    columns = [list(column.cells) for column in table.columns]
    return [[str(cell) for cell in row] for row in zip(*columns, strict=True)]


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 20, "1.0 MiB"), (5 << 30, "5.0 GiB"),
     (1 << 40, "1.0 TiB"), (1 << 50, "1024.0 TiB")],
)  # fmt: skip
def test_bytes(count: int, shown: str) -> None:
    assert tables.human_bytes(count) == shown


@given(st.integers(0, 1 << 60))
def test_bytes_leave_at_least_one_of_a_unit(count: int) -> None:
    value, unit = tables.human_bytes(count).split()
    assert unit in ("B", "KiB", "MiB", "GiB", "TiB")
    assert unit == "B" or float(value) >= 1


def test_json_is_one_line_and_what_is_no_finite_number_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_json({"a": nan, "b": [inf, -inf, 1.5], "c": {"d": "NaN"}, "e": 0.1})
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    found = json.loads(printed, parse_constant=pytest.fail)
    assert found == {"a": None, "b": [None, None, 1.5], "c": {"d": "NaN"}, "e": 0.1}


def test_equal_parts_are_one_row() -> None:
    analysis = analyse(load(BUILDERS["lenet"]()))
    alike = text(tables.sizes_table(measure(analysis, plan(analysis, 5))))
    assert [row[0] for row in alike] == ["whole", "parts 0 to 4, each"]
    assert alike[0][1:3] == ["431,080", "100.00%"]
    assert alike[1][1:3] == ["18,224", "4.23%"]
    uneven = text(tables.sizes_table(measure(analysis, plan(analysis, 2, shares=(2, 1)))))
    assert [row[0] for row in uneven] == ["whole", "part 0", "part 1"]


def test_layers_say_what_became_of_them() -> None:
    analysis = analyse(load(BUILDERS["lenet"]()))
    made = partition(analysis, 2)
    rows = text(tables.layers_table(made.plan, outcomes.of_layers(made)))
    assert [(row[0], row[1], row[3], row[4]) for row in rows] == [
        ("Conv 'conv1'", "20", "2 x 10", "divided"),
        ("Conv 'conv2'", "50", "2 x 25", "divided"),
        ("Gemm 'fc1'", "500", "2 x 250", "divided"),
        ("Gemm 'logits'", "10", "", "shared: output layer"),
    ]


def test_initializers_say_how_they_merge() -> None:
    made = plan(analyse(load(BUILDERS["lenet"]())), 2)
    rows = {row[0]: row[1:] for row in text(tables.initializers_table(made))}
    assert rows["fc1.bias"] == ["[500]", "2 x [250]", "joined"]
    assert rows["logits.weight"][2] == "joined, divided by K"
    assert rows["logits.bias"] == ["[10]", "2 x [10]", "shared: mean over the parts"]


def test_notes_name_what_could_not_simply_be_divided() -> None:
    made = plan(analyse(load(BUILDERS["lrn"]())), 2)
    assert tables.notes(made) == ["duplicated: LRN 'norm': each part mixes its own units alone"]
    assert tables.notes(plan(analyse(load(BUILDERS["lenet"]())), 2)) == []


def test_notes_of_one_kind_are_counted() -> None:
    made = plan(analyse(load(BUILDERS["lrn"]())), 2)
    norms = tuple(f"LRN 'norm{i}'" for i in range(24))
    weights = tuple(f"w{i}" for i in range(10))
    blocked = ("Foo 'a': no rule", "Bar 'b': no rule", "Foo 'c': no rule", "Foo 'd': its own")
    assert tables.notes(replace(made, duplicated=norms, replicated=weights, blocked=blocked)) == [
        "duplicated: LRN 'norm0' and 23 more LRN: each part mixes its own units alone",
        "replicated: w0, w1, w2, w3, w4, w5, w6, w7 and 2 more: each part has values of its own",
        "blocked: Foo 'a' and 1 more Foo: no rule",
        "blocked: Bar 'b': no rule",
        "blocked: Foo 'd': its own",
    ]


def test_no_name_is_broken_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "encoder.layers.0.self-attention.key_projection.weight" * 2
    layer = replace(plan(analyse(load(BUILDERS["chain"]())), 2).layers[0], node=f"Conv '{name}'")
    rows = tables.layers_table(
        replace(plan(analyse(load(BUILDERS["chain"]())), 2), layers=(layer,)), ["tied to much else"]
    )
    monkeypatch.setattr(tables, "console", lambda: Console(width=40, highlight=False, markup=False))
    tables.show(rows, f"blocked: {name}: words that are wrapped between words alone")
    told = capsys.readouterr().out
    assert told.count(name) == 2
    assert {"wrapped", "between", "tied", "else"} <= set(told.split())
    assert told.splitlines()[-2:] == ["words that are wrapped between words", "alone"]


def test_a_verdict_ends_with_one_word() -> None:
    analysis = analyse(load(BUILDERS["chain"]()))
    verdict = verify(analysis, plan(analysis, 2))
    lines = tables.verdict_lines(verdict)
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")][:-1] == [
        "ensemble identity", "block identity", "compared with the parts",
    ]  # fmt: skip
    assert lines[-1] == "verified"
