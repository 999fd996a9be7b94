"""What is printed: text and tables, without colours and boxes, so that they read the same in a file; and JSON."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import groupby
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import typer
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table

from onnxpart.inspection import outcomes
from onnxpart.inspection.explain import Advice, Axis, Why
from onnxpart.inspection.sizes import Size, Sizes
from onnxpart.inspection.tie_graph import Cause
from onnxpart.merging.folder import Merged
from onnxpart.planning.plan import Plan
from onnxpart.verification.oracles import Finding, Verdict

if TYPE_CHECKING:
    from onnxpart.torch.runs.estimate import Estimates

Volume = Literal["quiet", "normal", "verbose"]
_volume: ContextVar[Volume] = ContextVar("volume", default="normal")
LISTED = 8
"""How many of several names are shown."""
WIDE = 200
"""Columns where the output is no terminal."""
WIDEST = 100_000
"""Columns that any table fits in."""
TEXT = 20
"""Columns for text beside names, at least."""
ORACLES = {
    "ensemble identity": "the merged whole computes the mean of the parts",
    "block identity": "without weights between parts the whole computes the parts side by side",
}


@contextmanager
def volume(how: Volume) -> Iterator[None]:
    """Set what is printed: only warnings and errors, everything, or also how long steps take."""
    before = _volume.set(how)
    try:
        yield
    finally:
        _volume.reset(before)


def console(*, stderr: bool = False) -> Console:
    """A console that writes plain text, none when quiet; where the output is no terminal, no line is wrapped."""
    result = Console(stderr=stderr, highlight=False, markup=False, emoji=False, quiet=_volume.get() == "quiet")
    if not result.is_terminal:
        result.width = WIDE
    return result


def show(*lines: Table | str) -> None:
    """Print to stdout, wrapped between words where it is a terminal; no word is broken, so that names can be copied."""
    for line in lines:
        out = console()
        if isinstance(line, str):
            fitting = textwrap.wrap(line, out.width, break_long_words=False, break_on_hyphens=False)
            out.print("\n".join(fitting), soft_wrap=True)
        else:
            out.width = max(out.width, _least_width(out, line))
            out.print(line)


def show_json(data: object) -> None:
    """Print one object to stdout, for programs. What is no finite number is null, as JSON has no word for it."""
    typer.echo(json.dumps(json.loads(json.dumps(data), parse_constant=lambda _: None)))


def _least_width(out: Console, table: Table) -> int:
    """Return the columns that a table takes when the text in its last column is wrapped as far as it may be."""
    texts = [str(cell) for cell in table.columns[-1].cells]
    least = max(TEXT, *(len(word) for text in texts for word in text.split()), 0)
    widest = Measurement.get(out, out.options.update_width(WIDEST), table).maximum
    return widest - max(0, max(map(len, texts), default=0) - least)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show on a terminal's stderr that something is running; when verbose, print anywhere how long it took."""
    start, out = perf_counter(), console(stderr=True)
    with out.status(what):
        yield
    if _volume.get() == "verbose":
        out.print(f"{what}: {perf_counter() - start:.1f} s")


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return a table of which only the last column is wrapped, so that names stay whole."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        justify: JustifyMethod = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name != columns[-1])
    return table


def _runs(parts: Sequence[object]) -> list[tuple[int, int]]:
    """First and last part of each run of equal ones."""
    result, start = [], 0
    for _, run in groupby(parts):
        size = len(list(run))
        result.append((start, start + size - 1))
        start += size
    return result


def _called(first: int, last: int) -> str:
    return f"part {first}" if first == last else f"parts {first} to {last}, each"


def human_bytes(count: int) -> str:
    """A number of bytes in the largest unit (powers of 1024) that leaves at least 1."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def sizes_table(sizes: Sizes) -> Table:
    """Table 1 of the paper, with multiply-accumulates and bytes: the whole, then the parts."""
    columns = ("parameters", "of the whole", "MACs per sample", "bytes")
    table = _table("", *columns, right=columns)

    def row(name: str, size: Size) -> None:
        share = 100 * size.parameters / max(1, sizes.whole.parameters)
        table.add_row(name, f"{size.parameters:,}", f"{share:.2f}%", f"{size.macs:,}", human_bytes(size.bytes))

    row("whole", sizes.whole)
    for first, last in _runs(sizes.parts):
        row(_called(first, last), sizes.parts[first])
    return table


def layers_table(plan: Plan, became: Sequence[str]) -> Table:
    """One row per layer: units, classes that move together, units of each part, what became of it."""
    table = _table("layer", "units", "classes", "per part", "", right=("units", "classes", "per part"))
    for layer, what in zip(plan.layers, became, strict=True):
        counts = [
            f"{layer.parts[a]:,}" if a == b else f"{b - a + 1} x {layer.parts[a]:,}" for a, b in _runs(layer.parts)
        ]
        table.add_row(layer.node, f"{layer.units:,}", f"{layer.classes:,}", "; ".join(counts), what)
    return table


def notes(plan: Plan) -> list[str]:
    """What could not simply be divided: one line for all of a kind with the same reason."""
    return [
        *(f"duplicated: {title}: each part mixes its own units alone" for title in _counted(plan.duplicated)),
        *([f"replicated: {_listed(plan.replicated)}: each part has values of its own"] if plan.replicated else []),
        *(f"blocked: {titles}: {reason}" for titles, reason in _alike(plan.blocked)),
    ]


def _counted(titles: Sequence[str]) -> list[str]:
    """Operators, as in `Relu 'a'`: the first of each type with the number of its others."""
    count = Counter(title.split(" ", 1)[0] for title in titles)
    first = {title.split(" ", 1)[0]: title for title in reversed(titles)}
    return [first[kind] + (f" and {n - 1:,} more {kind}" if n > 1 else "") for kind, n in count.items()]


def _listed(names: Sequence[str]) -> str:
    """Return the first names, with the number of the others."""
    rest = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{rest}"


def _alike(blocked: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Operators that are blocked for the same reason, counted, and that reason."""
    by_reason: dict[str, list[str]] = {}
    for entry in blocked:
        title, _, reason = entry.partition(": ")
        by_reason.setdefault(reason, []).append(title)
    for reason, titles in by_reason.items():
        yield from ((counted, reason) for counted in _counted(titles))


def why_lines(why: Why) -> list[Table | str]:
    """What becomes of one tensor: for each axis with units the ties that hold them, and what would free them."""
    lines: list[Table | str] = [f"{why.name} {_shape(why.shape)} in {why.k} parts"]
    if why.cause is not None:
        lines.append(_held(why.cause))
    for mixed in why.duplicated:
        lines.append(f"{mixed.node} is duplicated ({mixed.reason}): each part has a copy over its own units")
        lines += _freed(mixed.advice, "it stands once")
    for axis in why.axes:
        lines += ["", f"axis {' x '.join(map(str, axis.axes))}: {_share(axis)}"]
        if axis.together:
            lines.append(f"  these move with them: {_listed(axis.together)}")
        if axis.chain:
            table = _table("  what is undivided", "is tied to", "by", "")
            for step in axis.chain:
                table.add_row(f"  {step.source}", step.target, step.node, step.reason)
            lines.append(table)
        if axis.cause is not None:
            lines += [f"  {_held(axis.cause)}", *_freed(axis.advice, "more of it is divided")]
    return lines


def _share(axis: Axis) -> str:
    if not axis.parts:
        return f"{axis.units} units, none divided"
    counts = ", ".join(f"{axis.parts[a]} in {_called(a, b)}" for a, b in _runs(axis.parts))
    rest = f", {axis.undivided} in every part" if axis.undivided else ""
    return f"{axis.units} units, divided in {axis.classes} classes of {axis.layer}: {counts}{rest}"


def _held(cause: Cause) -> str:
    return f"held by {cause.node}: {cause.reason}" if cause.node else f"why: {cause.reason}"


def _freed(advice: Sequence[Advice], what: str) -> list[str]:
    tried = [f"--outputs {','.join(a.outputs)}" if a.outputs else f"-k {a.k}" for a in advice]
    return [f"  {what} with {' or with '.join(tried)}"] if tried else []


def initializers_table(plan: Plan) -> Table:
    """How each floating-point initializer merges, one row for each (see `outcomes.of_initializers`)."""
    table = _table("initializer", "shape", "in the parts", "merging")
    for row in outcomes.of_initializers(plan):
        shapes = row["parts"]
        pieces = ", ".join(f"{b - a + 1} x {_shape(shapes[a])}" for a, b in _runs(shapes))
        table.add_row(row["name"], _shape(row["shape"]), pieces, row["merging"])
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def edges(merged: Merged) -> Iterator[str]:
    """What became of the weights between parts, by initializer."""
    if merged.kept:
        yield f"weights between parts stay as they were in {_listed(merged.kept)}"
    if merged.others:
        start = f"are drawn with {merged.spread:g} of the others' deviation" if merged.spread else "start at zero"
        yield f"weights between parts {start} in {_listed(merged.others)}"


def verdict_lines(verdict: Verdict) -> list[str]:
    """The verdict: one line per oracle, then one on the whole."""
    lines = []
    for oracle in dict.fromkeys(f.oracle for f in verdict.findings):
        found = [f for f in verdict.findings if f.oracle == oracle]
        worst = max(found, key=lambda f: f.deviation)
        word = "holds" if all(_sound(f) for f in found) else "FAILS"
        tensors = max(f.compared for f in found)
        lines.append(f"{oracle}: {word} ({ORACLES[oracle]})")
        lines.append(
            f"  {len(found)} runs, {tensors} tensor{'s' if tensors != 1 else ''} each; largest deviation "
            f"{worst.deviation:.1e} of its standard deviation, at {worst.worst!r} ({worst.weights} weights, batch "
            f"{worst.batch})"
        )
    lines += [
        f"output {name!r} isn't the mean of the parts' outputs, but is computed from it" for name in verdict.behind
    ]
    lines.append(f"compared with the parts: the {verdict.against}")
    lines.append("verified" if verdict.holds else "NOT verified: the whole is not the ensemble of its parts")
    return lines


def _sound(finding: Finding) -> bool:
    return finding.holds and finding.compared > 0


def estimates(found: Estimates) -> Table:
    """The whole's step and those of K parts (see `runs.estimate`), a row for each."""
    right = ("width", "parameters", "memory", "step, ms", "one part", "in series", "in parallel")
    table = _table("K", *right, "", right=right)
    spread = f"spread {found.spread:.0%}"
    table.add_row("1", "", "100.00%", human_bytes(found.bytes), f"{found.whole:.1f}", "", "", "", spread)
    for row in found.rows:
        if row.why_not:
            table.add_row(str(row.k), *[""] * len(right), row.why_not)
            continue
        table.add_row(
            str(row.k), str(row.width), f"{row.parameters:.2%}", human_bytes(row.bytes), f"{row.together:.1f}",
            f"{row.one:.1f}", f"{row.series:.2f} x", f"{row.parallel:.2f} x",
            "" if row.wide else "narrow",
        )  # fmt: skip
    return table
