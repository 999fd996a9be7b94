"""Runs ONNX's own node tests through the importer, and writes what passes and what not to `models/node_tests.md`."""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import typer
from onnx import TensorProto
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnxpart.errors import OnnxpartError
from onnxpart.torch import import_onnx
from onnxpart.torch.tensors import to_tensor
from scripts.machine import machine

PAGE = Path(__file__).resolve().parents[1] / "models" / "node_tests.md"
KINDS = ("numeric", "expanded", "other")
STATUSES = ("passed", "runtime", "random", "refused", "wrong", "crashed")
NUMERIC = frozenset(
    (
        TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL, TensorProto.UINT8, TensorProto.INT8,
        TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    )
)  # fmt: skip
"""The element types that numpy and torch both compute with."""
RANDOM = ("bernoulli", "training_dropout")
"""Beginnings of names of cases that draw; the reference's draws are numpy's."""
HEAD = """# ONNX's node tests in the importer

Written by `scripts/node_tests`, which runs all node tests of the installed onnx through `import_onnx`; a test fails
while the lists below are stale. *numeric*: all inputs and outputs are tensors of float32, float64, bool, uint8, int8,
int16, int32 or int64. *expanded*: numeric, and written out as the function that the operator stands for. *other*: the
rest, which is other element types, strings, sequences and optional values.

*passed*: values within the case's own tolerance or that of the type's rounding ({tolerance}), shapes and element types
equal. *runtime*: differs from the case as ONNX Runtime does, whose result it equals. *random*: shapes and element types
are equal, the draws can't be. *refused*: an error that names the node and the next step. *wrong* and *crashed*: there
must be none.
"""
TOLERANCE = "two units of it relative, four units of the largest value absolute"


@dataclass(frozen=True)
class Result:
    """How a case ended, and why where it didn't pass."""

    name: str
    kind: str
    status: str
    reason: str = ""


def cases() -> list[TestCase]:
    """All node tests of the installed onnx."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, while reference values are computed
        return list(collect_testcases(None))


def run_all() -> list[Result]:
    """The results of all cases."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    onnxruntime.set_default_logger_severity(4)
    return [run(case) for case in cases()]


def run(case: TestCase) -> Result:
    """Import a case, feed it, and compare with what is expected."""
    name, model = case.name.removeprefix("test_"), _model(case)
    kind = kind_of(name, model)
    values = not name.startswith(RANDOM) or "zero_ratio" in name
    try:
        module = import_onnx(model).train("training" in name)
        for inputs, outputs in case.data_sets or ():
            with torch.no_grad():
                result = module(*(_fed(value) for value in inputs))
            got = result if isinstance(result, tuple) else (result,)
            try:
                _compare(got, outputs, case, values)
            except AssertionError as error:
                if not _runtime_agrees(model, inputs, got, case):
                    return Result(name, kind, "wrong", " ".join(str(error).split()))
                return Result(name, kind, "runtime", "the reference differs from ONNX Runtime")
    except OnnxpartError as error:
        return Result(name, kind, "refused", str(error))
    except Exception as error:
        return Result(name, kind, "crashed", f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Result(name, kind, "passed" if values else "random", "" if values else "it draws")


def _model(case: TestCase) -> onnx.ModelProto:
    assert case.model is not None
    return case.model


def kind_of(name: str, model: onnx.ModelProto) -> str:
    """One of `KINDS`."""
    values = [*model.graph.input, *model.graph.output]
    if not all(v.type.HasField("tensor_type") and v.type.tensor_type.elem_type in NUMERIC for v in values):
        return "other"
    return "expanded" if "_expanded" in name else "numeric"


def _fed(value: Any) -> Any:
    if isinstance(value, list):
        return [_fed(item) for item in value]
    return None if value is None else to_tensor(_array(value))


def _array(value: Any) -> np.ndarray:
    return onnx.numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def _runtime_agrees(model: onnx.ModelProto, inputs: Sequence[Any], got: Sequence[Any], case: TestCase) -> bool:
    """Whether ONNX Runtime gives what the module does."""
    names = [value.name for value in model.graph.input]
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        _compare(got, session.run(None, dict(zip(names, inputs, strict=True))), case, values=True)
    except Exception:
        return False
    return True


def _compare(ours: Any, theirs: Any, case: TestCase, values: bool) -> None:
    if isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), f"{len(ours)} elements, not {len(theirs)}"
        for one, other in zip(ours, theirs, strict=True):
            _compare(one, other, case, values)
        return
    if theirs is None:
        assert ours is None, "a value, not none"
        return
    assert isinstance(ours, torch.Tensor), f"{ours}, not a tensor"
    expected = to_tensor(_array(theirs))
    assert ours.shape == expected.shape, f"shape {tuple(ours.shape)}, not {tuple(expected.shape)}"
    assert ours.dtype == expected.dtype, f"{ours.dtype}, not {expected.dtype}"
    if values:
        unit = torch.finfo(expected.dtype).eps if expected.dtype.is_floating_point else 0.0
        mine, wanted = (tensor if tensor.is_complex() else tensor.double() for tensor in (ours, expected))
        finite = wanted[torch.isfinite(wanted)].abs()
        atol = max(case.atol, 4 * unit * (finite.max().item() if finite.numel() else 0.0))
        torch.testing.assert_close(mine, wanted, rtol=max(case.rtol, 2 * unit), atol=atol, equal_nan=True)


def lists(results: Sequence[Result]) -> str:
    """The counts, and the cases that didn't pass by reason, as Markdown."""
    counts = Counter((r.kind, r.status) for r in results)
    lines = ["| kind | cases | " + " | ".join(STATUSES) + " |", "|---|" + "---:|" * (1 + len(STATUSES))]
    for kind in KINDS:
        row = [counts[kind, status] for status in STATUSES]
        lines.append(f"| {kind} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    found: dict[tuple[int, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if result.status != "passed":
            order = KINDS.index(result.kind), result.status
            found[order][_general(result.reason)].append(result.name)
    for (kind_number, status), reasons in sorted(found.items()):
        lines += ["", f"## {KINDS[kind_number]}, {status}", "", "| reason | cases | names |", "|---|---:|---|"]
        for reason, names in sorted(reasons.items()):
            lines.append(f"| {reason} | {len(names)} | {', '.join(sorted(names))} |")
    return "\n".join(lines) + "\n"


def _general(reason: str) -> str:
    """A reason without the names of nodes, values and models, and without the next step."""
    reason = re.sub(r"^node '.*?' \((\w+)\)", r"\1", reason.partition(";")[0])
    return re.sub(r"^test_\w+ has", "the model has", re.sub(r"'[^']*'", "a value", reason)).replace("|", "/")


def main() -> None:
    """Run all node tests and write the page."""
    results = run_all()
    taken = ", ".join(f"{key} {value}" for key, value in machine("onnx", "onnxruntime-gpu", "torch").items())
    PAGE.write_text(f"{HEAD.format(tolerance=TOLERANCE)}\nTaken on: {taken}.\n\n{lists(results)}")
    typer.echo(lists(results).partition("\n\n")[0])
    if any(result.status in ("wrong", "crashed") for result in results):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
