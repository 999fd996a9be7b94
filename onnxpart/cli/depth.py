"""The commands that leave blocks of a network out, and stack them again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from onnxpart.analysis.walk import analyse
from onnxpart.cli import tables
from onnxpart.cli.models import loaded
from onnxpart.cli.options import Force, Json, ModelFile
from onnxpart.emission.shallow import Depth, draft_shallow
from onnxpart.ir.model import Model
from onnxpart.ir.redraft import redraft
from onnxpart.merging.deepen import New, deepen_file
from onnxpart.storage.draft import Draft
from onnxpart.storage.onnx_file import save
from onnxpart.storage.outputs import check_file
from onnxpart.verification.check import Check, check_growth

Out = Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Model to write.", show_default=False)]


def shallow(
    model: ModelFile,
    blocks: Annotated[
        int,
        typer.Option(
            metavar="N", help="How many blocks of each stack stay. They are the first ones.", show_default=False
        ),
    ],
    out: Out,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Leave out repeated blocks of a network.

    `deepen` puts them back when the others are trained; it needs MODEL, too.
    """
    check_file(out, force, [model])
    with tables.busy(f"leaving out blocks of {model}"):
        draft = draft_shallow(loaded(model), blocks)
        save(draft, out)
    depth = Depth.of(draft.proto)
    sources = () if depth is None else depth.sources
    if as_json:
        tables.show_json({"model": str(out), "sources": sources})
        return
    for stack in sources:
        starts = ", ".join(map(str, stack))
        tables.show(f"{len(set(stack))} of {len(stack)} blocks stay; they start as blocks {starts}")
    tables.show(f"wrote {out}")


def deepen(
    source: Annotated[
        Path,
        typer.Argument(metavar="SHALLOW", help="The file that `shallow` wrote, trained or merged.", show_default=False),
    ],
    network: ModelFile,
    out: Out,
    new: Annotated[
        New,
        typer.Option(
            help="How new blocks start: as copies, or with zeros in their last weights, so that they add nothing."
        ),
    ] = "copies",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Put back the blocks that `shallow` left out of MODEL.

    Where new blocks add nothing, it is checked that the deep network computes the same.
    """
    found: Check | None = None

    def check(deep: Model, small: Model, draft: Draft) -> None:
        nonlocal found
        found = check_growth(analyse(deep), redraft(small), draft)

    with tables.busy(f"deepening {source}"):
        grown = deepen_file(source, loaded(network), out, new=new, force=force, check=check if new == "zero" else None)
    if as_json:
        told = {
            "sources": grown.sources,
            "zeros": sorted(grown.zeros),
            "check": None if found is None else asdict(found),
        }
        tables.show_json({"model": str(out), "new": new, **told})
        return
    zero = f", {len(grown.zeros)} of them zero" if grown.zeros else ""
    tables.show(f"filled {len(grown.sources)} initializers of new blocks{zero}; wrote {out}")
    if found is not None:
        tables.show(found.sentence)
