"""The commands that leave blocks of a network out, and stack them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from onnxpart.cli import tables
from onnxpart.cli.training import Force, Json, ModelFile
from onnxpart.emission.shallow import Depth, draft_shallow
from onnxpart.frontend.load import load
from onnxpart.merging.deepen import New, deepen_file
from onnxpart.storage.onnx_file import save
from onnxpart.storage.outputs import check_file

Out = Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Model to write.", show_default=False)]


def shallow(
    model: ModelFile,
    blocks: Annotated[
        int, typer.Option(metavar="N", help="How many blocks of each stack stay: the first ones.", show_default=False)
    ],
    out: Out,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Leave out blocks that a network repeats; `deepen` stacks them again when the others are trained."""
    check_file(out, force, [model])
    with tables.busy(f"leaving out blocks of {model}"):
        draft = draft_shallow(load(model), blocks)
        save(draft, out)
    depth = Depth.of(draft.proto)
    sources = () if depth is None else depth.sources
    if as_json:
        typer.echo(json.dumps({"model": str(out), "sources": sources}))
        return
    for stack in sources:
        starts = ", ".join(map(str, stack))
        tables.console().print(f"{len(set(stack))} of {len(stack)} blocks stay; they start as blocks {starts}")
    tables.console().print(f"wrote {out}")


def deepen(
    source: Annotated[
        Path,
        typer.Argument(metavar="SHALLOW", help="The file that `shallow` wrote, trained or merged.", show_default=False),
    ],
    network: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The network that it was made of.", show_default=False)
    ],
    out: Out,
    new: Annotated[
        New,
        typer.Option(help="How new blocks start: as copies, or as such whose last weights are zero: they add nothing."),
    ] = "copies",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Stack trained blocks to the deep network."""
    with tables.busy(f"deepening {source}"):
        grown = deepen_file(source, network, out, new=new, force=force)
    if as_json:
        typer.echo(json.dumps({"model": str(out), "new": new, "sources": grown.sources, "zeros": sorted(grown.zeros)}))
        return
    told = f", {len(grown.zeros)} of them zero" if grown.zeros else ""
    tables.console().print(f"filled {len(grown.sources)} initializers of new blocks{told}; wrote {out}")
