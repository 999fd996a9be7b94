"""The command line: one thin command per verb, which parses, calls and prints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxpart import __version__
from onnxpart.analysis.walk import analyse
from onnxpart.cli import depth, reporting, tables, training
from onnxpart.cli.messages import Commands, with_volume
from onnxpart.cli.models import loaded, named
from onnxpart.cli.options import EdgesText, Force, Json, ModelFile, Outputs
from onnxpart.cli.training import edges_of
from onnxpart.emission.initial import InitKind
from onnxpart.emission.split import part_files, split
from onnxpart.errors import UsageError
from onnxpart.inspection import outcomes
from onnxpart.inspection.explain import why
from onnxpart.inspection.sizes import Sizes, measure
from onnxpart.ir.redraft import redraft
from onnxpart.merging import folder
from onnxpart.merging.merge import Into, Normalize
from onnxpart.merging.net2wider import NOISE
from onnxpart.page import dot as graphviz
from onnxpart.page import node_data
from onnxpart.page import write as page
from onnxpart.planning.partition import Partition
from onnxpart.planning.plan import OrderKind, Plan
from onnxpart.planning.planner import partition
from onnxpart.verification.check import check
from onnxpart.verification.oracles import Verdict, verify

app = typer.Typer(
    name="onnxpart",
    cls=Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Cut an ONNX network across its width into parts that train apart, and merge them into the whole.",
)
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder that `onnxpart split` wrote.", show_default=False)
]
WholeGraph = Annotated[
    Into,
    typer.Option(
        help="Which whole to fill: duplicated, in which operators that mix units stand once per part, or "
        "the original graph."
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE.html",
        help="Also draw a page: the layers, their units by part, what is shared, and why. A page there is replaced.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onnxpart {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Print the help where no command is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _command(name: str, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return what makes a function the command of this name, with an example in its help."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        app.command(name, epilog=f"Example: onnxpart {name} {example}")(with_volume(command))
        return command

    return add


@_command("inspect", "model.onnx -k 2 --html page.html")
def inspect_(
    model: ModelFile,
    k: Annotated[int, typer.Option("-k", help="Number of parts.")] = 2,
    initializers: Annotated[bool, typer.Option("--initializers", help="Also list the initializers.")] = False,
    outputs: Outputs = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--why", metavar="NAME", help="Explain what holds this node, value or initializer, and nothing else."
        ),
    ] = None,
    html: Html = None,
    node_data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Also write what becomes of each node, so that Model Explorer can colour its graph by it.",
        ),
    ] = None,
    dot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.dot", help="Also write the picture for Graphviz, for figures in papers."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what would be divided, what wouldn't, and why.

    Also show how large the parts would be.
    """
    written = _Written(html, node_data, dot)
    written.check(model, name)
    analysis = analyse(loaded(model, outputs))
    if name is not None:
        found = why(analysis, name, k)
        if as_json:
            tables.show_json({"model": str(model), **asdict(found)})
        else:
            tables.show(*tables.why_lines(found))
        return
    made = partition(analysis, k)
    planned, became = made.plan, outcomes.of_layers(made)
    sizes = measure(analysis, planned)
    written.write(made, sizes)
    if as_json:
        tables.show_json(
            {
                "model": str(model),
                **_decisions(planned),
                "layers": [
                    {**asdict(layer), "outcome": what} for layer, what in zip(planned.layers, became, strict=True)
                ],
                "sizes": asdict(sizes),
            }
            | ({"initializers": outcomes.of_initializers(planned)} if initializers else {})
            | written.names
        )
        return
    tables.show(
        f"{model} in {k} parts",
        "",
        tables.layers_table(planned, became),
        "",
        *tables.notes(planned),
        tables.sizes_table(sizes),
        *(("", tables.initializers_table(planned)) if initializers else ()),
        *written.lines,
    )


@_command("split", "model.onnx -k 2 -o parts")
def split_(
    model: ModelFile,
    k: Annotated[int, typer.Option("-k", help="Number of parts.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Folder to write. If omitted, MODEL's name with _parts, in this folder."
        ),
    ] = None,
    order: Annotated[OrderKind, typer.Option(help="In which order units go to the parts.")] = "contiguous",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random order and of fresh weights.")] = 0,
    shares: Annotated[
        str | None, typer.Option(help="Relative sizes of the parts, as in 2,1,1. If omitted, they are equal.")
    ] = None,
    init: Annotated[
        InitKind,
        typer.Option(help="The parts' weights: slices of the model's, fresh ones, or slices scaled to their fan-in."),
    ] = "slices",
    outputs: Outputs = None,
    checked: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Run parts and whole in ONNX Runtime and compare them before anything is written. "
            "Models that take more than 512 MiB or some ten seconds are left to `onnxpart verify`.",
        ),
    ] = True,
    html: Html = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Cut a model into parts, and make the whole that they merge into.

    DIR gets part0.onnx, part1.onnx and so on, whole.onnx and plan.json.
    """
    written = _Written(html)
    written.check(model)
    target = out if out is not None else named(model, "parts")
    with tables.busy(f"splitting {model}"):
        network = loaded(model, outputs)
        done = split(network, k, order=order, seed=seed, shares=_shares(shares), init=init)
        sizes = measure(done.analysis, done.plan)
        found = check(done, sizes, None if outputs or not network.files else model) if checked else None
        done.save(target, force=force)
        written.write(done.partition, sizes)
    if as_json:
        tables.show_json(
            {
                "model": str(model),
                "folder": str(target),
                "files": _files(target),
                **_decisions(done.plan),
                "sizes": asdict(sizes),
                "check": None if found is None else asdict(found),
            }
            | written.names
        )
        return
    told = [] if found is None else [found.sentence]
    told += [f"wrote {k} part{'s' * (k > 1)} and the whole to {target}", *written.lines]
    tables.show(tables.sizes_table(sizes), "", *tables.notes(done.plan), *told)


@_command("merge", "parts -o merged.onnx")
def merge_(
    source: Folder,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="PATH",
            help="Model to write. If omitted, DIR/merged.onnx. With --to it is a folder, DIR_K if omitted.",
        ),
    ] = None,
    to: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Merge into K larger parts, which train on and merge again. If omitted, the parts merge "
            "into the whole.",
        ),
    ] = None,
    parts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A part: ONNX, or safetensors of its weights. Give it once for each part, safetensors in the parts' "
            "order. If omitted, they are DIR's.",
        ),
    ] = None,
    into: WholeGraph = "duplicated",
    normalize: Annotated[
        Normalize, typer.Option(help="What is divided by K: the weights of the output, or the output itself.")
    ] = "weights",
    edges: EdgesText = "0",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights between parts.")] = 0,
    initializers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Write the merged initializers here. The model is then written with --out only.",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Merge trained parts into the whole, or into larger parts."""
    if to is not None:
        if (into, normalize, edges, initializers) != ("duplicated", "weights", "0", None):
            raise UsageError(
                "--to writes parts; leave out --into, --normalize, --edges and --initializers until the last merge."
            )
        _merge_level(source, out or source.with_name(f"{source.name}_{to}"), to, parts, force, as_json)
        return
    planned = folder.read_plan(source)
    if out is None and initializers is None:
        out = source / "merged.onnx"
    with tables.busy(f"merging {source}"):
        merged = folder.merge_folder(
            source, out, parts=parts, into=into, normalize=normalize, edges=edges_of(edges, seed),
            initializers=initializers, force=force,
        )  # fmt: skip
    written = {"model": out, "initializers": initializers}
    if as_json:
        names = {name: None if path is None else str(path) for name, path in written.items()}
        tables.show_json(
            {**names, "k": planned.k, "into": into, "normalize": normalize, "merged": merged.names, "kept": merged.kept}
            | ({} if merged.card is None else {"card": str(merged.card)})
        )
        return
    files = " and ".join(str(path) for path in written.values() if path is not None)
    tables.show(f"merged {len(merged.names)} initializers of {planned.k} parts into {files}", *tables.edges(merged))
    if merged.card is not None:
        tables.show(f"wrote {merged.card}, its model card; add the data, the metrics and the licence to it")


def _merge_level(source: Path, out: Path, k: int, parts: list[Path] | None, force: bool, as_json: bool) -> None:
    with tables.busy(f"merging {source}"):
        planned = folder.merge_level(source, out, k, parts=parts, force=force).plan
    if as_json:
        tables.show_json({"folder": str(out), "files": _files(out), **_decisions(planned)})
        return
    tables.show(f"merged the parts of {source} to {k}, wrote them and the whole to {out}")


@_command("widen", "parts/part0.onnx -o wide.onnx")
def widen_(
    part: Annotated[Path, typer.Argument(metavar="PART", help="A trained part: ONNX, or safetensors of its weights.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Model to write.", show_default=False)],
    split_folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", metavar="DIR", help="Folder of the part's split. If omitted, the one that PART is in."
        ),
    ] = None,
    into: WholeGraph = "duplicated",
    noise: Annotated[
        float, typer.Option(help="Uniform noise on the copies, as a share of each parameter's maximum.")
    ] = NOISE,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fill the whole with copies of one trained part (Net2WiderNet)."""
    with tables.busy(f"widening {part}"):
        widened = folder.widen_part(part, out, folder=split_folder, into=into, noise=noise, seed=seed, force=force)
    if as_json:
        tables.show_json({"model": str(out), "into": into, "noise": noise, "seed": seed, "widened": widened})
        return
    tables.show(f"widened {len(widened)} initializers of {part} into {out}")


@_command("verify", "parts")
def verify_(source: Folder, as_json: Json = False) -> None:
    """Check that the merged whole is the ensemble of its parts.

    ONNX Runtime computes both. The exit code is 1 if they differ.
    """
    planned = folder.read_plan(source)
    with tables.busy(f"verifying {source}"):
        analysis = analyse(folder.original(source, planned))
        parts = folder.read_parts(planned, part_files(source, planned.k))
        drafts = [redraft(part) for part in parts]
        verdict = verify(analysis, planned, parts=drafts, whole=redraft(folder.read_whole(source, planned)))
    if as_json:
        tables.show_json(_verdict(verdict))
    else:
        tables.show(*tables.verdict_lines(verdict))
    if not verdict.holds:
        raise typer.Exit(1)


_command("shallow", "model.onnx --blocks 2 -o shallow.onnx")(depth.shallow)
_command("deepen", "shallow.onnx model.onnx -o deep.onnx")(depth.deepen)
_command("estimate", "model.onnx --data npz:data.npz")(training.estimate)
_command("train", "parts --data npz:data.npz --epochs 20")(training.train)
_command("fit", "model.onnx -k 2 --data npz:data.npz --epochs 20")(training.fit)
_command("report", "model_fit -o report.html")(reporting.report)


def _shares(text: str | None) -> list[int] | None:
    """Return the shares that an option lists.

    :raises UsageError: when they are no whole numbers.
    """
    if text is None:
        return None
    try:
        return [int(share) for share in text.split(",")]
    except ValueError:
        raise UsageError(f"--shares {text!r} aren't whole numbers; give them as in 2,1,1.") from None


def _files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def _decisions(planned: Plan) -> dict[str, Any]:
    names = ("k", "order", "seed", "shares", "duplicated", "replicated", "blocked", "mean")
    return {name: getattr(planned, name) for name in names}


_SUFFIXES = {"page": page.SUFFIX, "node_data": node_data.SUFFIX, "graph": graphviz.SUFFIX}


@dataclass(frozen=True)
class _Written:
    """What is written for people to look at: a page, node data for Model Explorer, a graph for Graphviz, or nothing."""

    page: Path | None
    node_data: Path | None = None
    graph: Path | None = None

    def check(self, model: Path, why: str | None = None) -> None:
        """Refuse what can't be written, before anything takes its time."""
        if self.names and why is not None:
            raise UsageError(
                "--html, --node-data and --dot show the whole network, and --why explains one name; leave out one or "
                "the other."
            )
        for what, name in self.names.items():
            page.check(Path(name), _SUFFIXES[what], [model])

    def write(self, made: Partition, sizes: Sizes) -> None:
        """Write it."""
        page.write(made, sizes, *map(Path, self.names.values()))

    @property
    def names(self) -> dict[str, str]:
        """The files, as JSON has them."""
        return {what: str(path) for what, path in vars(self).items() if path is not None}

    @property
    def lines(self) -> list[str]:
        """A line for each file."""
        return [f"wrote the {what.replace('_', ' ')} {path}" for what, path in self.names.items()]


def _verdict(verdict: Verdict) -> dict[str, Any]:
    findings = [{**asdict(f), "holds": f.holds} for f in verdict.findings]
    return {"holds": verdict.holds, "against": verdict.against, "behind": verdict.behind, "findings": findings}


def main() -> None:
    """Run the command line; what the output's encoding lacks is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="onnxpart")
