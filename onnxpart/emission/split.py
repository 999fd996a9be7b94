"""Model -> plan, parts and duplicated whole, in memory and as a folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from onnxpart.analysis.analysis import Analysis
from onnxpart.analysis.walk import analyse
from onnxpart.emission.initial import INITS, initial
from onnxpart.emission.part import draft_part
from onnxpart.emission.whole import draft_whole
from onnxpart.errors import UsageError
from onnxpart.frontend.load import load
from onnxpart.ir.model import Model
from onnxpart.ir.redraft import redraft
from onnxpart.planning.partition import Partition
from onnxpart.planning.plan import Plan
from onnxpart.planning.planner import partition
from onnxpart.storage.atomic import replacing_folder
from onnxpart.storage.draft import Draft
from onnxpart.storage.onnx_file import save
from onnxpart.storage.outputs import check_folder

PLAN, WHOLE, ORIGINAL = "plan.json", "whole.onnx", "original.onnx"


def part_file(part: int) -> str:
    """File name of a part."""
    return f"part{part}.onnx"


def part_files(folder: Path, k: int) -> list[Path]:
    """The parts' files in the folder of a split."""
    return [folder / part_file(part) for part in range(k)]


@dataclass(frozen=True, eq=False)
class Split:
    """A model divided: the partition, and drafts of K part models and of the duplicated whole that they merge into."""

    partition: Partition
    part_drafts: tuple[Draft, ...]
    whole_draft: Draft

    @property
    def analysis(self) -> Analysis:
        """What is known about the model."""
        return self.partition.analysis

    @property
    def plan(self) -> Plan:
        """How it is divided."""
        return self.partition.plan

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

        The folder appears whole or not at all. Data that are external in the source are external in
        these files (see `onnx_file.save`), and are copied a few rows at a time.

        :param force: replace a folder that onnxpart wrote (see `outputs.check_folder`).
        :raises ModelError: when the folder exists, holds the source, or can't be written.
        """
        check_folder(Path(folder), force, self.analysis.model.files)
        with replacing_folder(Path(folder)) as fresh:
            self.write(fresh)

    def write(self, folder: Path) -> None:
        """Write the files into a folder that is there.

        :raises ModelError: when one can't be written.
        """
        for p, part in enumerate(self.part_drafts):
            save(part, folder / part_file(p))
        save(self.whole_draft, folder / WHOLE)
        if not self.plan.same_graph:
            save(redraft(self.analysis.model), folder / ORIGINAL)
        (folder / PLAN).write_text(self.plan.to_json(), encoding="utf-8")


def split(
    model: Model | onnx.ModelProto | str | os.PathLike[str],
    k: int = 2,
    *,
    order: str = "contiguous",
    seed: int = 0,
    shares: Sequence[int] | None = None,
    init: str = "slices",
    undivided: Collection[str] = (),
) -> Split:
    """Divide a network across its width into K parts.

    :param k: number of parts. :param order: contiguous, interleaved or random (with `seed`). :param shares: relative
        sizes of the parts. :param init: `slices` of the whole's weights; the same slices `scaled`, so that their
        variance is again inversely proportional to the fan-in; or fresh weights for the parts' smaller fan-in (`he`
        normal, `glorot` uniform; biases then start at zero). :param undivided: initializers that every part has as a
        whole.
    :raises UsageError: for arguments that make no sense. :raises ModelError: for an unusable model.
    :raises PartitionError: when nothing can be divided.
    """
    if init not in INITS:
        raise UsageError(f"the initialisation {init!r} is unknown; choose one of {', '.join(INITS)}.")
    analysis = analyse(model if isinstance(model, Model) else load(model))
    for name in undivided:
        if name not in analysis.model.initializers:
            raise UsageError(f"{analysis.model.name} has no initializer {name!r} to leave undivided; check the name.")
        for f in analysis.fields(name):
            analysis.labels.share(f, -1, f"{name!r} is to stay undivided")
    made = partition(analysis, k, order=order, seed=seed, shares=shares)
    parts = []
    for p in range(k):
        fresh = None if init == "slices" else initial(made, p, init, seed)
        parts.append(draft_part(made, p, fresh))
    return Split(made, tuple(parts), draft_whole(made))
