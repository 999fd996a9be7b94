"""The figures of the zoo as tables in Markdown."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Record = dict[str, Any]
"""A line of `models/zoo.jsonl`: a `zoo_one.Record` with the peak memory, the commit and the machine."""
MARGIN = 1.02
"""How much larger than Torch-Pruning's model a part may be."""

HEAD = """# The zoo

Written by `scripts/zoo` from `models/zoo.jsonl`. Models have random weights; *verified* means that both oracles hold.
*part* is what the largest part has of the whole's parameters; *ideal* is what it would have with all units divided that
no output of the network holds. *divided*, *replicated* and *blocked* say what became of the initializers (with how many
there are, and their share of the parameters): cut into pieces, whole in every part, whole because of an operator
without a rule. *duplicated* are operators that mix units and so exist once per part, with what they read. *deviation*
is the largest of both oracles, *seconds* those of the export, the split and the verification."""

FORMS = """Models as people export them to run: constants folded, and any batch. *right*: in ONNX Runtime the whole of
two parts computes their mean, at batches of 1, 2 and 3; where no output is a mean, behind an output function, both
oracles hold."""


def table(records: Sequence[Record]) -> str:
    """The whole page."""
    forms = [record for record in records if record.get("form")]
    records = [record for record in records if not record.get("form")]
    zoos: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: r["name"]):
        zoos[record["name"].partition("/")[0]].append(record)
    blocks = [HEAD, *_origins([*records, *forms]), "## Summary", _summary(zoos), *_forms(forms)]
    for zoo, here in zoos.items():
        blocks += [f"## {zoo}", _lacking(here), *_failures(here), _models(here)]
    return "\n\n".join([*blocks, "## Causes", _causes(records), "## Torch-Pruning", *_pruning(records)]) + "\n"


def _grid(titles: str, rows: Iterable[Sequence[object]]) -> str:
    """A table; titles that start with > are of columns with numbers."""
    columns = titles.split("|")
    lines = [" | ".join(c.removeprefix(">") for c in columns)]
    lines.append(" | ".join("---:" if c.startswith(">") else "---" for c in columns))
    lines += [" | ".join(str(cell).replace("|", "/") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _share(value: float) -> str:
    return f"{value:.1%}"


def _origins(records: Sequence[Record]) -> list[str]:
    """Where the figures come from: machines with versions, and commits."""
    machines = dict.fromkeys(", ".join(f"{k} {v}" for k, v in r["machine"].items()) for r in records)
    commits = dict.fromkeys(r["commit"] for r in records)
    return [f"Taken on: {'; '.join(machines)}. Commits: {', '.join(commits)}."]


def _row(record: Record, k: int = 2) -> Record:
    return next((row for row in record["rows"] if row["k"] == k), {})


def _verified(record: Record) -> bool:
    return bool(_row(record).get("holds"))


def _summary(zoos: dict[str, list[Record]]) -> str:
    tests: list[Callable[[Record], bool]] = [
        lambda r: bool(r.get("exporter")),
        lambda r: bool(_row(r).get("part")),
        _verified,
        lambda r: bool(_row(r, 4).get("holds")),
    ]
    rows = []
    for zoo, here in zoos.items():
        exported, split, verified, quarters = (sum(map(test, here)) for test in tests)
        share = _share(verified / max(1, exported))
        families = {r["family"] for r in here if r.get("exporter")}
        rows.append((zoo, len(here), exported, len(families), split, verified, share, quarters))
    return _grid("zoo|>models|>exported|>families|>split (K = 2)|>verified|>of those exported|>verified (K = 4)", rows)


def _forms(records: Sequence[Record]) -> list[str]:
    """What came out of the exports to run, and why not more did."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (r["form"], r["name"])):
        groups[record["form"], record["name"].partition("/")[0]].append(record)
    if not groups:
        return []
    rows = []
    for (form, zoo), here in groups.items():
        exported, held = [r for r in here if r.get("exporter")], [r for r in here if _verified(r)]
        worst = max((max(r["batches"].values()) for r in held), default=0.0)
        share = _share(len(held) / max(1, len(exported)))
        rows.append((form, zoo, len(here), len(exported), len(held), share, f"{worst:.0e}"))
    titles = "form|zoo|>models so far|>exported|>right|>of those exported|>largest deviation"
    failed = [(r["form"], r["name"], _problem(r)) for r in records if not _verified(r)]
    return [
        "## Exports to run",
        FORMS,
        _grid(titles, rows),
        *([_grid("form|model|why not", failed)] if failed else []),
    ]


def _lacking(records: Sequence[Record]) -> str:
    """Families without a model that exports."""
    families = {r.get("family") or r["name"] for r in records}
    lacking = sorted(families - {r["family"] for r in records if r.get("exporter")})
    return f"{len(families)} families; without a model that exports: {', '.join(lacking) or 'none'}."


def _problem(record: Record) -> str:
    """What keeps a model from being verified in two parts."""
    row = _row(record)
    if record["error"] and not _verified(record):
        return f"{'export' if not record.get('exporter') else 'process'}: {record['error']}"
    return row.get("error") or f"deviation {row['deviation']:.0e} at {row['worst']}"


def _failures(records: Sequence[Record]) -> list[str]:
    rows = [(r["name"].partition("/")[2], _problem(r)) for r in records if not _verified(r)]
    return [_grid("not verified in two parts|reason", rows)] if rows else []


def _models(records: Sequence[Record]) -> str:
    titles = "model|input|exporter|>parameters|>K|>part|>ideal|>divided|>duplicated|>replicated|>blocked|>deviation"
    return _grid(f"{titles}|>seconds|reason", (cells for record in records for cells in _lines(record)))


def _lines(record: Record) -> Iterable[list[str]]:
    name, seconds = record["name"].partition("/")[2], record["seconds"]
    for row in record["rows"]:
        head = ["", "", "", ""]
        if row["k"] == 2:
            shapes = ", ".join("x".join(map(str, shape)) for shape in record["inputs"].values())
            head = [name, shapes, f"{record['exporter']} {record['opset']}", f"{record['parameters']:,}"]
        fates = [
            f"{row['counts'][fate]}: {_share(row[fate])}" if row["counts"].get(fate) else ""
            for fate in ("divided", "duplicated", "replicated", "blocked")
        ]
        shares = [_share(row["part"]), _share(row["ideal"])] if row["part"] else ["", ""]
        deviation = "" if row["deviation"] is None else f"{row['deviation']:.0e}"
        times = " + ".join(f"{value:.1f}" for value in (seconds["export"], row["split"], row["verify"]))
        yield [*head, str(row["k"]), *shares, *fates, deviation, times, _reason(row)]


def _reason(row: Record) -> str:
    """Why a row isn't verified, or what costs it most."""
    if row["error"]:
        return str(row["error"])
    if not row["holds"]:
        return f"NOT verified: {row['worst']}"
    causes = row["causes"].items()
    lost = [f"{cause} ({_share(share)})" for cause, share in causes if not _output(cause) and share > 5e-4]
    return "; ".join(lost[:2])


def _output(cause: str) -> bool:
    return cause.startswith("an output")


def _causes(records: Sequence[Record]) -> str:
    """What parts have beyond a K-th along each axis of units, over all models in two parts."""
    models, shares, most = Counter[str](), Counter[str](), dict[str, tuple[float, str]]()
    for record in records:
        for cause, share in _row(record).get("causes", {}).items():
            models[cause] += 1
            shares[cause] += share
            most[cause] = max(most.get(cause, (0.0, "")), (share, record["name"]))
    count = max(1, sum(1 for r in records if _row(r).get("part")))
    rows = [
        (cause, models[cause], f"{share / count:.2%}", f"{most[cause][1]} ({_share(most[cause][0])})")
        for cause, share in shares.most_common()
    ]
    note = "What keeps parameters of a part from being divided (K = 2), as a share of the whole's."
    return f"{note}\n\n" + _grid("cause|>models|>share, mean over all models|most in", rows)


def _pruning(records: Sequence[Record]) -> list[str]:
    """Parts beside what Torch-Pruning leaves of the same model."""
    pruned = [r for r in records if r.get("pruned") and _row(r).get("part")]
    half = [r for r in pruned if r["pruned"] < r["parameters"]]
    ratios = {r["name"]: _row(r)["part"] * r["parameters"] / r["pruned"] for r in half}
    larger = sum(ratio > MARGIN for ratio in ratios.values())
    failed = Counter(r["unpruned"].partition(":")[0] for r in records if r.get("unpruned"))
    failures = ", ".join(f"{error} ({count})" for error, count in failed.most_common())
    text = (
        f"Torch-Pruning took half the channels of {len(half)} models whose pruned model exports; a part of ours "
        f"(K = 2) has at most 2% more parameters in {len(half) - larger} of them. "
        f"It failed on {sum(failed.values())}: {failures or 'none'}."
    )
    rows = []
    for r in sorted(half, key=lambda r: -ratios[r["name"]]):
        part = round(_row(r)["part"] * r["parameters"])
        rows.append((r["name"], f"{r['parameters']:,}", f"{part:,}", f"{r['pruned']:,}", f"{ratios[r['name']]:.3f}"))
    return [text, _grid("model|>parameters|>a part|>pruned|>ratio", rows)]
