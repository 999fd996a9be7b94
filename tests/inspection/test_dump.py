"""What every small network becomes: analysis, plan, parts and whole as text in golden/*.txt."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from models import GOLDEN
from onnxpart import PartitionError, Split, analyse, load, plan, split
from onnxpart.inspection.dump import dump_analysis, dump_model, dump_plan
from tests.networks.copies import with_arrays

FOLDER = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Case:
    """One network, divided one way."""

    network: str
    k: int = 2
    order: str = "contiguous"
    seed: int = 0
    shares: tuple[int, ...] | None = None

    @property
    def file(self) -> Path:
        words = [self.network, *([str(self.k)] if self.k != 2 else [])]
        words += [self.order] if self.order != "contiguous" else []
        words += ["shares", *(str(s) for s in self.shares)] if self.shares else []
        return FOLDER / ("_".join(words) + ".txt")

    @property
    def header(self) -> str:
        options = f" --order {self.order} --seed {self.seed}" if self.order != "contiguous" else ""
        options += f" --shares {','.join(str(s) for s in self.shares)}" if self.shares else ""
        return f"onnxpart split {self.network}.onnx -k {self.k}{options}\n"


CASES = [
    *(Case(name) for name in GOLDEN),
    Case("chain", 4, "interleaved"),
    Case("chain", 3, "random", seed=3),
    Case("chain", 3, shares=(2, 1, 1)),
    Case("flatten", 3, "interleaved"),
    Case("groupnorm", 3),
    Case("lrn", 4, "interleaved"),
    Case("qkv", 4),
    Case("qkv", 2, "interleaved"),
    Case("residual", 4),
    Case("shuffle", 4),
    Case("slice_split", 2, "interleaved"),
]


def counted(model: ModelProto) -> ModelProto:
    """The model with 0, 1, 2, ... as weights: a slice then tells where it is from, on every platform."""
    values = {
        t.name: np.arange(np.prod(t.dims, dtype=int), dtype=np.float32).reshape(t.dims)
        for t in model.graph.initializer
        if t.data_type == TensorProto.FLOAT and len(t.dims)
    }
    return with_arrays(model, values)


def text(case: Case) -> str:
    """The golden's text."""
    model = load(counted(GOLDEN[case.network]()))
    sections = {"analysis": dump_analysis(analyse(model))}
    try:
        done = split(model, case.k, order=case.order, seed=case.seed, shares=case.shares)
    except PartitionError as error:
        sections["refused"] = f"{error}\n"
    else:
        sections |= _done(done)
    return case.header + "".join(f"\n== {title} ==\n{body}" for title, body in sections.items())


def _done(done: Split) -> dict[str, str]:
    parts = {f"part {p}": dump_model(part) for p, part in enumerate(done.parts)}
    return {"plan": dump_plan(done.plan), **parts, "whole": dump_model(done.whole)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file.stem)
def test_golden(case: Case, update_golden: bool) -> None:
    got = text(case)
    if update_golden:
        case.file.parent.mkdir(exist_ok=True)
        case.file.write_text(got, encoding="utf-8", newline="\n")
        return
    want = case.file.read_text(encoding="utf-8")
    if got != want:
        lines = difflib.unified_diff(want.splitlines(), got.splitlines(), case.file.name, "now", lineterm="")
        pytest.fail(
            "\n".join([*lines, "If this is right: pytest tests/inspection/test_dump.py --update-golden"]), pytrace=False
        )


def test_no_golden_is_left_over(update_golden: bool) -> None:
    for path in FOLDER.glob("*.txt") if update_golden else ():
        if path not in {case.file for case in CASES}:
            path.unlink()
    assert update_golden or {path.name for path in FOLDER.glob("*.txt")} == {case.file.name for case in CASES}


def test_text_does_not_depend_on_what_was_done_before() -> None:
    """A plan may give up soft ties, but the analysis of a fresh load is the same, and so are two dumps in a row."""
    model = load(counted(GOLDEN["qkv"]()))
    analysis = analyse(model)
    first = dump_analysis(analysis)
    plan(analysis, 3)
    assert dump_analysis(analyse(model)) == first
    assert dump_analysis(analyse(load(counted(GOLDEN["qkv"]())))) == first
