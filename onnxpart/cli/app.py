"""The command line: one thin command per verb, which parses, calls and prints."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TextIO

import typer

from onnxpart import __version__
from onnxpart.analysis.walk import analyse
from onnxpart.cli import depth, reporting, tables, training
from onnxpart.cli.training import EdgesText, Force, Json, ModelFile, edges_of
from onnxpart.emission.initial import INITS
from onnxpart.emission.split import part_files, split
from onnxpart.errors import OnnxpartError, UsageError
from onnxpart.frontend.extract import cut
from onnxpart.frontend.load import load
from onnxpart.frontend.torch_export import advice
from onnxpart.inspection import outcomes
from onnxpart.inspection.explain import why
from onnxpart.inspection.sizes import Sizes, measure
from onnxpart.ir.model import Model
from onnxpart.ir.redraft import redraft
from onnxpart.merging import folder
from onnxpart.merging.merge import Into, Normalize
from onnxpart.merging.net2wider import NOISE
from onnxpart.page import dot as graphviz
from onnxpart.page import node_data
from onnxpart.page import write as page
from onnxpart.planning.partition import Partition
from onnxpart.planning.plan import ORDERS, Plan
from onnxpart.planning.planner import partition
from onnxpart.verification.check import check
from onnxpart.verification.oracles import Verdict, verify

P = ParamSpec("P")
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Cut an ONNX network across its width into parts that train apart, and merge them into the whole.",
)
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder that `onnxpart split` wrote.", show_default=False)
]
Outputs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME,..",
        help="Values of the graph that are to be its only outputs; what leads to none of them is cut off.",
    ),
]
WholeGraph = Annotated[
    Into, typer.Option(help="The whole in which what mixes units exists once per part, or the original graph.")
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE.html",
        help="Draw it as a page too: the layers, their units by part, what is shared, and why; replaces a page there.",
    ),
]


def _reported(command: Callable[P, None]) -> Callable[P, None]:
    """Return the command with errors as one sentence and an exit code, and warnings as one line each, on stderr."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        """Run the command; an error becomes a sentence and an exit code."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning
            try:
                command(*args, **kwargs)
            except OnnxpartError as error:
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(error.exit_code) from None
            except KeyboardInterrupt:
                raise typer.Exit(130) from None

    return run


def _show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    typer.echo(f"warning: {message}", err=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onnxpart {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Hold the options of no command in particular."""


@app.command("inspect")
@_reported
def inspect_(
    model: ModelFile,
    k: Annotated[int, typer.Option("-k", help="Number of parts.")] = 2,
    initializers: Annotated[bool, typer.Option("--initializers", help="List the initializers too.")] = False,
    outputs: Outputs = None,
    name: Annotated[
        str | None,
        typer.Option("--why", metavar="NAME", help="Explain this node, value or initializer instead: what holds it."),
    ] = None,
    html: Html = None,
    node_data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Write what becomes of each node, for Model Explorer to colour its graph by.",
        ),
    ] = None,
    dot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.dot", help="Write it for Graphviz too, which draws figures for papers."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what would be divided, what not and why, and how large the parts would be."""
    written = _Written(html, node_data, dot)
    written.check(model, name)
    analysis = analyse(_loaded(model, outputs))
    if name is not None:
        found = why(analysis, name, k)
        if as_json:
            _print_json({"model": str(model), **asdict(found)})
        else:
            tables.show(*tables.why_lines(found))
        return
    made = partition(analysis, k)
    planned, became = made.plan, outcomes.of_layers(made)
    sizes = measure(analysis, planned)
    written.write(made, sizes)
    if as_json:
        _print_json(
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


@app.command("split")
@_reported
def split_(
    model: ModelFile,
    k: Annotated[int, typer.Option("-k", help="Number of parts.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="Folder to write; MODEL's name with _parts, here, if omitted."),
    ] = None,
    order: Annotated[str, typer.Option(help=f"How units go to the parts: {', '.join(ORDERS)}.")] = ORDERS[0],
    seed: Annotated[int, typer.Option(help="Of the random order and of fresh weights.")] = 0,
    shares: Annotated[
        str | None, typer.Option(help="Relative sizes of the parts, as in 2,1,1; equal if omitted.")
    ] = None,
    init: Annotated[str, typer.Option(help=f"The parts' weights: {', '.join(INITS)}.")] = INITS[0],
    outputs: Outputs = None,
    checked: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Run parts and whole in ONNX Runtime and compare them before anything is written; "
            "models that take more than 512 MiB or some ten seconds are left to `onnxpart verify`.",
        ),
    ] = True,
    html: Html = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Cut a model into parts: part0.onnx .., whole.onnx that they merge into, and plan.json."""
    written = _Written(html)
    written.check(model)
    target = out if out is not None else Path(f"{model.stem}_parts")
    with tables.busy(f"splitting {model}"):
        done = split(_loaded(model, outputs), k, order=order, seed=seed, shares=_shares(shares), init=init)
        sizes = measure(done.analysis, done.plan)
        found = check(done, sizes, None if outputs else model) if checked else None
        done.save(target, force=force)
        written.write(done.partition, sizes)
    if as_json:
        _print_json(
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


@app.command("merge")
@_reported
def merge_(
    source: Folder,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="PATH",
            help="Model to write, DIR/merged.onnx if omitted; with --to a folder, DIR_K if omitted.",
        ),
    ] = None,
    to: Annotated[
        int | None,
        typer.Option(metavar="K", help="Merge to K larger parts, which train and merge on; to the whole if omitted."),
    ] = None,
    parts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A part, once for each: ONNX, or safetensors of its weights in the order of the parts; "
            "DIR's parts if omitted.",
        ),
    ] = None,
    into: WholeGraph = "duplicated",
    normalize: Annotated[
        Normalize, typer.Option(help="Divide by K the weights of the output, or the output itself.")
    ] = "weights",
    edges: EdgesText = "0",
    seed: Annotated[int, typer.Option(min=0, help="Of the weights between parts.")] = 0,
    initializers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors", help="Write the merged initializers here; the model then only with --out."
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Merge trained parts into the whole network, or into fewer and larger parts."""
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
        _print_json(
            {**names, "k": planned.k, "into": into, "normalize": normalize, "merged": merged.names, "kept": merged.kept}
        )
        return
    files = " and ".join(str(path) for path in written.values() if path is not None)
    tables.show(f"merged {len(merged.names)} initializers of {planned.k} parts into {files}", *tables.edges(merged))


def _merge_level(source: Path, out: Path, k: int, parts: list[Path] | None, force: bool, as_json: bool) -> None:
    with tables.busy(f"merging {source}"):
        planned = folder.merge_level(source, out, k, parts=parts, force=force).plan
    if as_json:
        _print_json({"folder": str(out), "files": _files(out), **_decisions(planned)})
        return
    tables.show(f"merged the parts of {source} to {k}, wrote them and the whole to {out}")


@app.command("widen")
@_reported
def widen_(
    part: Annotated[Path, typer.Argument(metavar="PART", help="A trained part: ONNX, or safetensors of its weights.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Model to write.", show_default=False)],
    split_folder: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="Folder of the part's split; PART's if omitted.")
    ] = None,
    into: WholeGraph = "duplicated",
    noise: Annotated[
        float, typer.Option(help="Uniform noise on the copies, as a share of each parameter's maximum.")
    ] = NOISE,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fill the whole network with copies of one trained part (Net2WiderNet)."""
    with tables.busy(f"widening {part}"):
        widened = folder.widen_part(part, out, folder=split_folder, into=into, noise=noise, seed=seed, force=force)
    if as_json:
        _print_json({"model": str(out), "into": into, "noise": noise, "seed": seed, "widened": widened})
        return
    tables.show(f"widened {len(widened)} initializers of {part} into {out}")


@app.command("verify")
@_reported
def verify_(source: Folder, as_json: Json = False) -> None:
    """Check in ONNX Runtime that the merged whole is the ensemble of its parts; exit with 1 if it isn't."""
    planned = folder.read_plan(source)
    with tables.busy(f"verifying {source}"):
        analysis = analyse(folder.original(source, planned))
        parts = folder.read_parts(planned, part_files(source, planned.k))
        drafts = [redraft(part) for part in parts]
        verdict = verify(analysis, planned, parts=drafts, whole=redraft(folder.read_whole(source, planned)))
    if as_json:
        _print_json(_verdict(verdict))
    else:
        tables.show(*tables.verdict_lines(verdict))
    if not verdict.holds:
        raise typer.Exit(1)


app.command("shallow")(_reported(depth.shallow))
app.command("deepen")(_reported(depth.deepen))
app.command("estimate")(_reported(training.estimate))
app.command("train")(_reported(training.train))
app.command("fit")(_reported(training.fit))
app.command("report")(_reported(reporting.report))


def _loaded(path: Path, outputs: list[str] | None) -> Model:
    model = load(path)
    for sentence in advice(model.proto):
        warnings.warn(sentence, stacklevel=2)
    return model if outputs is None else cut(model, [name for text in outputs for name in text.split(",")])


def _shares(text: str | None) -> list[int] | None:
    """Return the shares that an option lists.

    :raises UsageError: when they are no whole numbers.
    """
    if text is None:
        return None
    try:
        return [int(share) for share in text.split(",")]
    except ValueError:
        raise UsageError(f"the shares {text!r} are not whole numbers; write them as in 2,1,1.") from None


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
            raise UsageError("--html, --node-data and --dot show the whole network; leave them out, or --why.")
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
    for finding in findings:
        if not math.isfinite(finding["deviation"]):
            finding["deviation"] = None
    return {"holds": verdict.holds, "against": verdict.against, "behind": verdict.behind, "findings": findings}


def _print_json(data: object) -> None:
    typer.echo(json.dumps(data, allow_nan=False))


def main() -> None:
    """Run the command line."""
    app(prog_name="onnxpart")
