"""What `onnxpart split` and `deepen` check before they write their files, within a budget."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path

import numpy as np
import onnx

from onnxpart.analysis.analysis import Analysis
from onnxpart.emission.split import Split
from onnxpart.errors import OnnxpartError, VerificationError
from onnxpart.inspection.sizes import Sizes, measure
from onnxpart.ir.arrays import array_of
from onnxpart.planning.planner import plan
from onnxpart.storage.draft import Draft
from onnxpart.verification.feeds import inputs
from onnxpart.verification.oracles import TOLERANCE, growth_deviation, verify
from onnxpart.verification.runtime import Session, assemble

MOST_BYTES = 1 << 29
"""Most bytes of weights: whole and parts are in memory a few times over."""
MOST_ELEMENTS = 1 << 26
"""Most elements of a tensor, at the sizes of symbolic dimensions in a run."""
MOST_MACS = 20_000_000_000
"""Most multiply-accumulates of a run of whole and parts: all runs together take some ten seconds on one core."""
DRAWS = 16
"""The number of inputs on which the original model is run, if the split model can't be."""


@dataclass(frozen=True)
class Check:
    """The result: the largest deviation relative to the outputs' standard deviation, or why nothing was checked.

    `holds` says in words what was checked.
    """

    deviation: float | None
    reason: str = ""
    holds: str = "the whole computes the mean of its parts"

    @property
    def sentence(self) -> str:
        """The same in words."""
        if self.deviation is None:
            return f"not checked: {self.reason}"
        return f"checked in ONNX Runtime: {self.holds} (deviation {self.deviation:.0e})"


def check(split: Split, sizes: Sizes, original: Path | None = None) -> Check:
    """Run parts and whole on a small input, at two sizes of every symbolic dimension, and compare them.

    Both oracles are asked (see `verify`), on the parts' own weights. Models aren't checked if they have more than
    `MOST_BYTES` or `MOST_MACS`, if ONNX Runtime can't run the original, or if it isn't installed.

    :param sizes: the sizes of the whole and of the parts. :param original: the file that the model came in; None for a
        model in memory, and for one of which some outputs were chosen.
    :raises VerificationError: when the whole isn't the parts' mean, or can't be run although the original can.
    """
    macs = sizes.whole.macs + sum(part.macs for part in sizes.parts)
    reason = _untried(split.analysis, sizes.whole.bytes, macs, "; `onnxpart verify` does it all the same")
    if reason is not None:
        return Check(None, reason)
    try:
        verdict = verify(split.analysis, split.plan, parts=split.part_drafts, whole=split.whole_draft, fresh=False)
    except OnnxpartError as error:
        if not _runs(split.analysis, original):
            return Check(None, f"ONNX Runtime can't run the original model ({error})")
        raise VerificationError(_failed(split, f"the parts or the whole can't be run: {error}")) from None
    worst = max(verdict.findings, key=lambda finding: finding.deviation / finding.tolerance, default=None)
    if worst is None or not any(finding.compared for finding in verdict.findings):
        return Check(None, "no output depends on weights in a way that could be compared")
    if not worst.holds:
        raise VerificationError(
            _failed(
                split, f"{worst.oracle} fails at {worst.worst!r} by {worst.deviation:.0e} of its standard deviation"
            )
        )
    return Check(worst.deviation)


def check_growth(analysis: Analysis, shallow: Draft, deep: Draft) -> Check:
    """Run a shallow network, and the deep one that is to compute the same, and compare them (see `check`).

    :param analysis: of the deep network.
    :raises VerificationError: when they don't compute the same, or only one of them can be run.
    """
    whole = measure(analysis, plan(analysis, 1)).whole
    reason = _untried(analysis, whole.bytes, 2 * whole.macs)
    if reason is not None:
        return Check(None, reason)
    name = analysis.model.name
    try:
        deviation = growth_deviation(analysis, shallow, deep)
    except OnnxpartError as error:
        if not _runs(analysis, None):
            return Check(None, f"ONNX Runtime can't run the original model ({error})")
        raise VerificationError(_mistake(name, f"the deep network can't be run: {error}")) from None
    if deviation is None:
        return Check(None, "no output is of floats, so nothing can be compared")
    if not deviation <= TOLERANCE:
        raise VerificationError(_mistake(name, f"the deep network's outputs differ by {deviation:.0e} of their spread"))
    return Check(deviation, holds="the deep network computes what the shallow one does")


def _untried(analysis: Analysis, size: int, macs: int, later: str = "") -> str | None:
    """Why models aren't run; None if they are.

    :param size: bytes of the weights. :param macs: of all that would be run. :param later: what to do about it.
    """
    if find_spec("onnxruntime") is None:
        return "ONNX Runtime isn't installed; `pip install '.[gpu]'` from a checkout installs it"
    if size > MOST_BYTES:
        return f"its weights take more than {MOST_BYTES >> 20} MiB{later}"
    if max(map(prod, analysis.shapes.shape.values()), default=0) > MOST_ELEMENTS:
        return f"a tensor has more than {MOST_ELEMENTS:,} elements{later}"
    if macs > MOST_MACS:
        return f"a run takes more than {MOST_MACS // 10**9} billion multiply-accumulates{later}"
    return None


def _runs(analysis: Analysis, original: Path | None) -> bool:
    """Whether ONNX Runtime runs the original model: if there is a file, as it came and not as it was rewritten.

    It is run on `DRAWS` inputs, since on some of them an If may choose a branch that can't be run.
    """
    model, rng = analysis.model, np.random.default_rng(0)
    try:
        if original is not None:
            session = Session(onnx.load_model(original))
        else:
            session = Session(*assemble(model.proto, {name: array_of(model, name) for name in model.initializers}))
        session.run_all(inputs(analysis, draw % 2, rng) for draw in range(DRAWS))
    except OnnxpartError:
        return False
    return True


def _failed(split: Split, what: str) -> str:
    return _mistake(split.analysis.model.name, what, ", and --no-check writes it all the same")


def _mistake(name: str, what: str, way: str = "") -> str:
    return f"{name}: {what}. This is a bug in onnxpart; please report it. Nothing was written{way}."
