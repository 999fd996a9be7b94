"""Writes `onnxpart/OPERATORS.md`: what happens to the units at every version of every ONNX operator."""

import inspect
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnxpart
from onnxpart.analysis.rules import table as rules
from onnxpart.analysis.rules.opaque import history, opaque

PAGE = Path(onnxpart.__file__).parent / "OPERATORS.md"
UNCLASSIFIED = "UNCLASSIFIED"
HEAD = """# Operators

Written by `scripts/operators` from the rule table; a test fails while it is stale.

Every operator of ONNX's default domain, at every version of the installed onnx. *Versions* are those with a rule; what
the rule does to the units is said in its own words. An operator or version without a rule is *opaque*: what flows into
it stays whole in every part, and `inspect` says so by the operator's name and the reason here. Operators of other
domains are opaque. Before that functions of the model are inlined, the branch of an If is taken whose condition is
known, and sequences and optionals are replaced by the tensors in them where these are known. A rule may still refuse a
use that it can't tell the units of.

{summary}

| operator | versions | kind | the units | without a rule |
|---|---|---|---|---|
"""


def page() -> str:
    """The page as Markdown."""
    rows = [_row(name, versions) for name, versions in history().items()]
    kinds = Counter(kind for kind, _ in rows)
    summary = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    text = f"{len(rows)} operators: {summary}."
    return HEAD.format(summary=text) + "\n".join(row for _, row in rows) + "\n"


def unclassified() -> list[str]:
    """Operators and versions that neither have a rule nor a reason for having none, and those that have both."""
    result = []
    for name, versions in history().items():
        known = rules.TABLE[name].versions if name in rules.TABLE else ()
        result += [f"{name} {v}" for v in versions if (v in known) == (opaque(name, v) is not None)]
    return result


def _row(name: str, versions: tuple[int, ...]) -> tuple[str, str]:
    rule = rules.TABLE.get(name)
    known = rule.versions if rule is not None else ()
    missing = [(v, opaque(name, v) or UNCLASSIFIED) for v in versions if v not in known]
    reasons = "; ".join(
        f"{', '.join(str(v) for v, _ in same)}: {reason}"
        for reason, same in groupby(missing, key=lambda entry: entry[1])
    )
    kind = rule.kind if rule is not None else "opaque"
    does = _summary(rule) if rule is not None else ""
    numbers = ", ".join(str(v) for v in versions if v in known)
    return kind, f"| {name} | {numbers} | {kind} | {does} | {reasons} |"


def _summary(rule: rules.Rule) -> str:
    """The first sentence of the rule's docstring, without the names of the operators in front."""
    first = (inspect.getdoc(rule.labels) or "").partition("\n\n")[0].replace("\n", " ")
    names, colon, rest = first.partition(": ")
    text = rest if colon and names[:1].isupper() else first
    return f"{text[:1].upper()}{text[1:]}".replace("|", "\\|").rstrip(".")


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if the page isn't up to date.")] = False,
) -> None:
    """Write the page."""
    left = unclassified()
    if left:
        typer.echo(f"neither a rule nor a reason, or both: {', '.join(left)}", err=True)
        raise typer.Exit(1)
    text = page()
    if not check:
        PAGE.write_text(text)
    elif not PAGE.is_file() or PAGE.read_text() != text:
        typer.echo(f"{PAGE.name} is stale; run scripts/operators and commit it.", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
