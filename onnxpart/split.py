"""Model -> plan, parts and duplicated whole, in memory and as a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxpart.analyse import Analysis, analyse
from onnxpart.emit import draft_part, draft_whole, layout_of
from onnxpart.errors import ModelError, UsageError
from onnxpart.files import Array, save
from onnxpart.fresh import fans
from onnxpart.layout import Layout
from onnxpart.model import Model, load, redraft
from onnxpart.plan import Plan
from onnxpart.planner import plan
from onnxpart.stream import Draft, Stream, rows_shape, windows

INITS = ("slices", "he", "glorot")
PLAN, WHOLE, ORIGINAL = "plan.json", "whole.onnx", "original.onnx"


def part_file(part: int) -> str:
    """File name of a part."""
    return f"part{part}.onnx"


@dataclass(frozen=True)
class Split:
    """A model divided: the plan, and drafts of K part models and of the duplicated whole that they merge into."""

    analysis: Analysis
    plan: Plan
    part_drafts: tuple[Draft, ...]
    whole_draft: Draft

    @cached_property
    def parts(self) -> tuple[onnx.ModelProto, ...]:
        """The part models, in memory."""
        return tuple(draft.model() for draft in self.part_drafts)

    @cached_property
    def whole(self) -> onnx.ModelProto:
        """The duplicated whole, in memory."""
        return self.whole_draft.model()

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write `part0.onnx ..`, `whole.onnx` and `plan.json`; `original.onnx` too where the whole differs from it.

        The folder appears whole or not at all. What is external in the source is so in these files (see `files.save`),
        and goes from file to file a few rows at a time.

        :raises ModelError: when the folder exists (unless `force`) or can't be written.
        """
        target = Path(folder)
        if target.exists() and not force:
            raise ModelError(f"{target} exists already; give another folder, or --force to replace it.")
        if target.is_dir() and any(target.iterdir()) and not (target / PLAN).is_file():
            raise ModelError(f"{target} holds other files than a split's; give another folder.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
                fresh = Path(name) / "split"
                fresh.mkdir()
                try:
                    self._write(fresh)
                except ModelError as error:
                    raise ModelError(str(error).replace(str(fresh), str(target))) from None
                if target.is_dir() and not target.is_symlink():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
                fresh.replace(target)
        except OSError as error:
            raise ModelError(f"{target} can't be written ({error.strerror}); choose another folder.") from None

    def _write(self, folder: Path) -> None:
        for p, part in enumerate(self.part_drafts):
            save(part, folder / part_file(p))
        save(self.whole_draft, folder / WHOLE)
        if not self.plan.same_graph:
            save(redraft(self.analysis.model), folder / ORIGINAL)
        (folder / PLAN).write_text(self.plan.to_json())


def split(
    model: Model | onnx.ModelProto | str | os.PathLike[str],
    k: int = 2,
    *,
    order: str = "contiguous",
    seed: int = 0,
    shares: Sequence[int] | None = None,
    init: str = "slices",
) -> Split:
    """Cut a network across its width into K parts.

    :param k: number of parts. :param order: contiguous, interleaved or random (with `seed`). :param shares: relative
        sizes of the parts. :param init: `slices` of the whole's weights, or fresh ones for the parts' smaller fan-in
        (`he` normal, `glorot` uniform; biases then start at zero).
    :raises UsageError: for arguments that make no sense. :raises ModelError: for an unusable model.
    :raises PartitionError: when nothing can be divided.
    """
    if init not in INITS:
        raise UsageError(f"the initialisation {init!r} is unknown; choose one of {', '.join(INITS)}.")
    analysis = analyse(model if isinstance(model, Model) else load(model))
    planned = plan(analysis, k, order=order, seed=seed, shares=shares)
    layout = layout_of(analysis, planned)
    parts = []
    for p in range(k):
        fresh = None if init == "slices" else initial(analysis, planned, layout, p, init, seed)
        parts.append(draft_part(analysis, planned, p, fresh))
    return Split(analysis, planned, tuple(parts), draft_whole(analysis, planned))


def initial(analysis: Analysis, planned: Plan, layout: Layout, part: int, init: str, seed: int) -> dict[str, Stream]:
    """Fresh weights of a part (see `split`); what is no weight of a contraction and no bias stays as sliced."""
    result = {}
    for number, initializer in enumerate(planned.initializers):
        name, bound = initializer.name, 0.0
        if name in analysis.state.weights:
            fan_in, fan_out = fans(analysis, planned, layout, name, part)
            variance = analysis.state.weights[name].gain / fan_in if init == "he" else 6.0 / (fan_in + fan_out)
            bound = float(np.sqrt(variance))
        elif name not in analysis.state.biases:
            continue
        dtype = analysis.model.rows(name).dtype
        result[name] = _drawn(initializer.part_shape(part), dtype, init, bound, (seed, part, number))
    return result


def _drawn(shape: tuple[int, ...], dtype: np.dtype[Any], init: str, bound: float, seed: tuple[int, ...]) -> Stream:
    """Random numbers: normal with standard deviation `bound` for `he`, else uniform up to it."""

    def chunks(size: int) -> Iterator[Array]:
        rng = np.random.default_rng(seed)
        for start, stop in windows(shape, dtype, size):
            rows = rows_shape(shape, start, stop)
            unit = rng.standard_normal(rows, np.float32) if init == "he" else 2 * rng.random(rows, np.float32) - 1
            yield (unit * np.float32(bound)).astype(dtype) if bound else np.zeros(rows, dtype)

    return Stream(shape, dtype, chunks)
