"""What `onnxpart split` tries of the files that it is about to write, within a budget."""

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
from onnxpart.inspection.sizes import Sizes
from onnxpart.ir.arrays import array_of
from onnxpart.verification.feeds import inputs
from onnxpart.verification.oracles import verify
from onnxpart.verification.runtime import Session, assemble

MOST_BYTES = 1 << 29
"""Of weights: whole and parts are in memory a few times over."""
MOST_ELEMENTS = 1 << 26
"""Of a tensor, at the sizes that symbolic dimensions have in a run."""
MOST_MACS = 20_000_000_000
"""Multiply-accumulates of a run of whole and parts: some ten seconds on one core for all that is run."""
DRAWS = 16
"""Inputs on which an original model is run, when what was split can't be."""


@dataclass(frozen=True)
class Check:
    """What came of it: the largest deviation relative to the outputs' spread, or why nothing was tried."""

    deviation: float | None
    reason: str = ""

    @property
    def sentence(self) -> str:
        """The same in words."""
        if self.deviation is None:
            return f"not checked: {self.reason}"
        return f"checked in ONNX Runtime: the whole computes the mean of its parts (deviation {self.deviation:.0e})"


def check(split: Split, sizes: Sizes, original: Path | None = None) -> Check:
    """Run parts and whole on a small input, at two sizes of every symbolic dimension, and compare them.

    Both oracles are asked (see `verify`), on the parts' own weights. Models of more than `MOST_BYTES` or `MOST_MACS`,
    those that ONNX Runtime can't run as they came, and all where it isn't installed, aren't checked.

    :param sizes: those of the split. :param original: the file that the model came in; None for a model in memory, and
        for one of which some outputs were chosen.
    :raises VerificationError: when the whole isn't the parts' mean, or can't be run although the original can.
    """
    if find_spec("onnxruntime") is None:
        return Check(None, "onnxruntime isn't installed; `pip install onnxruntime`")
    later = "`onnxpart verify` does it all the same"
    if sizes.whole.bytes > MOST_BYTES:
        return Check(None, f"its weights take more than {MOST_BYTES >> 20} MB; {later}")
    if max(map(prod, split.analysis.shapes.shape.values()), default=0) > MOST_ELEMENTS:
        return Check(None, f"a tensor has more than {MOST_ELEMENTS:,} elements; {later}")
    if sizes.whole.macs + sum(part.macs for part in sizes.parts) > MOST_MACS:
        return Check(None, f"a run takes more than {MOST_MACS // 10**9} billion multiply-accumulates; {later}")
    try:
        verdict = verify(split.analysis, split.plan, parts=split.part_drafts, whole=split.whole_draft, fresh=False)
    except OnnxpartError as error:
        if not _runs(split.analysis, original):
            return Check(None, f"ONNX Runtime can't run the model as it came ({error})")
        raise VerificationError(_failed(split, f"what it wrote can't be run: {error}")) from None
    worst = max(verdict.findings, key=lambda finding: finding.deviation / finding.tolerance, default=None)
    if worst is None or not any(finding.compared for finding in verdict.findings):
        return Check(None, "no output depends on weights in a way that could be compared")
    if not worst.holds:
        raise VerificationError(
            _failed(split, f"{worst.oracle} fails at {worst.worst!r} by {worst.deviation:.0e} of its spread")
        )
    return Check(worst.deviation)


def _runs(analysis: Analysis, original: Path | None) -> bool:
    """Whether ONNX Runtime runs the original model: as it came, not as it was rewritten, where there is a file.

    It is run on `DRAWS` inputs, since an If in it may choose a branch that can't be run on some of them only.
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
    return (
        f"{split.analysis.model.name}: {what}. This is a mistake of onnxpart's, please report it; nothing was written, "
        "and --no-check writes it all the same."
    )
