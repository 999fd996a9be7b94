"""The report's sections: from records to text, tables and figures; each is empty where there is nothing to tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from statistics import mean, stdev

from onnxpart.report import figures, published
from onnxpart.report.blocks import Block, Drawing, shown, table, unit
from onnxpart.report.fits import each_fit, fits
from onnxpart.report.records import FIT, Records, Run, Times

FITTED = "fit"
"""The method of runs of the command itself."""


@dataclass(frozen=True)
class Way:
    """Runs that differ by their seeds alone; their final metrics, and the seconds that such a run takes, the mean.

    `series` is None for what trains one part alone.
    """

    runs: tuple[Run, ...]
    series: float | None
    parallel: float

    @property
    def finals(self) -> list[float]:
        """The whole's metric at the end, by seed."""
        return [run.final["metric"] for run in self.runs]

    @property
    def mean(self) -> float:
        """Of the final metrics."""
        return mean(self.finals)

    @property
    def spread(self) -> float:
        """Their standard deviation over seeds; 0 for a single one."""
        return stdev(self.finals) if len(self.runs) > 1 else 0.0

    @property
    def name(self) -> str:
        """In words."""
        first = self.runs[0]
        rate = f", {first.lr:g} times the rate" if first.lr != 1 else ""
        if first.method == FITTED:
            merged = ", ".join(str(run.trained[0]["epochs"]) for run in self.runs)
            return f"fit -k {first.stages[0]['k']} --epochs {first.epochs}, merged after {merged}{rate}"
        if first.method in ("whole", "duplicated") and len(first.stages) == 1:
            return f"{first.method}, {first.epochs} epochs{rate}"
        stages = " + ".join(map(_stage, first.stages))
        return f"{first.method}: {stages}{f', new edges {first.edges:g}' if first.edges else ''}{rate}"


def _stage(stage: Mapping[str, int]) -> str:
    """A stage in words."""
    blocks = stage.get("blocks", 0)
    return f"{stage['epochs']} of K={stage['k']}" + (f", {blocks} block{'s' * (blocks > 1)}" if blocks else "")


def ways(runs: Iterable[Run], times: Times) -> list[Way]:
    """Group runs that differ by their seeds alone.

    :param runs: of one experiment.
    :param times: of the same experiment.
    :raises ModelError: when one of their networks wasn't timed.
    """
    ordered = sorted(runs, key=lambda run: (repr(run.way), run.seed))
    return [_way(tuple(group), times) for _, group in groupby(ordered, key=lambda run: run.way)]


def _way(runs: tuple[Run, ...], times: Times) -> Way:
    """The way of its runs."""
    series, parallel = zip(*map(times.of, runs), strict=True)
    return Way(runs, None if None in series else mean(series), mean(parallel))


def parts_table(records: Records) -> list[Block]:
    """Table 1: sizes and speed of one part."""
    times = records.timed("mnist")
    if times is None:
        return []
    columns = ("K", "parameters of a part", "paper", "speedup of an iteration", "paper", "ratio of MACs")
    rows = []
    for k, theirs in published.TABLE1.items():
        if str(k) not in times.parameters:
            continue
        speedup = times.epoch["whole"] / times.epoch["whole" if k == 1 else str(k)]
        macs = times.macs["1"] / times.macs[str(k)]
        ours = f"{times.parameters[str(k)]:,}", f"{theirs.parameters:,}", f"{speedup:.2f}", f"{theirs.speedup:.2f}"
        rows.append((str(k), *ours, f"{macs:.2f}"))
    told = (
        "Of LeNet (section 3.1). The speedup is that of one part's iteration over the whole's, medians of steps that "
    )
    return ["## Table 1: one part of K", told + "took turns.", table(columns, rows, 0)]


def diversity(records: Records) -> list[Block]:
    """Figure 2: how alike the parts believe."""
    found = sorted(records.diversity, key=lambda record: (record.k, record.seed))
    if not found:
        return []
    by_k = {k: [record.correlation for record in group] for k, group in groupby(found, key=lambda record: record.k)}
    means = [mean(values) for values in by_k.values()]
    falls = all(after < before for before, after in pairwise(means))
    rows = [(str(k), str(len(v)), _correlation(v)) for k, v in by_k.items()]
    told = "The probability that each part gives to the correct class, over the test data right before merging: "
    verdict = "it falls as K grows, as the paper says." if falls else "it does not fall with every step of K."
    blocks: list[Block] = [
        "## Figure 2: diversity",
        f"{told}Pearson's correlation between two parts, mean over all pairs; {verdict}",
        table(("K", "seeds", "correlation"), rows),
    ]
    pairs = {record.k: record.pairs for record in found if record.pairs}
    told = "What parts 0 and 1 of {} believe of the same digit"
    return [*blocks, *(Drawing(f"figure2_{k}", told.format(k), figures.beliefs(k, pairs[k])) for k in pairs)]


def _correlation(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def curves(records: Records) -> list[Block]:
    """Figure 3: loss and error over epochs, and the errors in a table."""
    runs, times = records.of("mnist"), records.timed("mnist")
    if not runs or times is None:
        return []
    metric = runs[0].metric
    known = [way for way in ways(runs, times) if way.runs[0].rate == "paper"]
    alone = [way for way in known if way.runs[0].method == "whole"]
    divided = [way for way in known if way.runs[0].method == "partition"]
    trained = sorted((way for way in divided if way.runs[0].merge_at), key=_k)
    untrained = {_k(way): way for way in divided if not way.runs[0].merge_at}
    columns = ("K", "seeds", "of a part", "right after merging", "at the end", "merged before any training")
    rows: list[tuple[str, ...]] = [("1", str(len(way.runs)), "", "", shown(way.finals, metric), "") for way in alone]
    for way in trained:
        merged = [float(run.merged["metric"]) for run in way.runs if run.merged]
        parts = [mean(p["metric"] for p in run.curve if _last(p, run)) for run in way.runs]
        before = untrained.get(_k(way))
        cells = (shown(values, metric) for values in (parts, merged, way.finals))
        rows.append((str(_k(way)), str(len(way.runs)), *cells, shown(before.finals, metric) if before else ""))
    by_k = {_k(way) if way in trained else 1: way.runs for way in (*alone, *trained)}
    shown_by = {"loss": "loss", "metric": unit(metric)}
    told = "{} over epochs, means over seeds; before merging those of the parts"
    return [
        f"## Figure 3: {unit(metric)} in test",
        f"{runs[0].network} on {runs[0].data}; all with the same learning rate, merged at the step in the curves.",
        table(columns, rows, 0),
        *(Drawing(f"figure3_{key}", told.format(name.capitalize()), figures.curves(by_k, key, name))
          for key, name in shown_by.items()),
    ]  # fmt: skip


def _k(way: Way) -> int:
    return way.runs[0].stages[0]["k"]


def _last(point: Mapping[str, object], run: Run) -> bool:
    return point["part"] is not None and point["epoch"] == run.merge_at


def merges(records: Records) -> list[Block]:
    """Table 2: merging at different epochs, beside Net2WiderNet."""
    runs, times = [run for run in records.of("cifar10") if run.rate == "paper"], records.timed("cifar10")
    found = [] if times is None else ways(runs, times)
    by_method = {name: [way for way in found if way.runs[0].method == name] for name in _TABLE2}
    if not all(by_method.values()):
        return []
    (original,), (base,) = by_method["whole"], by_method["duplicated"]
    metric, epochs = base.runs[0].metric, base.runs[0].epochs
    wide, divided = (
        {way.runs[0].merge_at: way for way in by_method[name] if _k(way) == _k(base)} for name in ("widen", "partition")
    )
    rows = [_alone_row("original", original, base, published.ORIGINAL, published.ORIGINAL_SPEEDUP),
            _alone_row("duplicated", base, base, published.DUPLICATED, 1.0)]  # fmt: skip
    for at in sorted(divided):
        theirs = published.TABLE2.get(round(at * published.EPOCHS / epochs))
        errors = (shown(way.finals, metric) if way else "" for way in (wide.get(at), divided[at]))
        speedup = _speedup(base, divided[at])
        rows.append((f"merged at {at}", *errors, _pair(divided[at].series, divided[at].parallel, 1), speedup,
                     *(_theirs(theirs) if theirs else ("", "", ""))))  # fmt: skip
    limit = published.DUPLICATED + published.DUPLICATED_SPREAD
    kept = max(at for at, row in published.TABLE2.items() if row.partitioned <= limit)
    kept_widened = max(at for at, row in published.TABLE2.items() if row.widened <= limit)
    columns = ("network", f"Net2WiderNet, {unit(metric)}", f"partitioned, {unit(metric)}", "seconds", "speedup",
               "paper: Net2WiderNet", "paper: partitioned", "paper: speedup")  # fmt: skip
    seeds = len(base.runs)
    return [
        "## Table 2: when to merge",
        f"{base.runs[0].network}, K = 2, on {base.runs[0].data}; {epochs} epochs, {seeds} seeds. Seconds and speedups "
        "are with the parts in series / in parallel, and over the duplicated network, as in the paper; its epochs are "
        f"at the same share of its {published.EPOCHS}.",
        table(columns, rows),
        _latest("Partitioning", divided, base),
        _latest("Net2WiderNet", wide, base),
        f"By the same rule the paper's latest merges are at epochs {kept} "
        f"({_pair(*published.TABLE2[kept][4:], 2)}) and {kept_widened} "
        f"({published.TABLE2[kept_widened].parallel:.2f}) of {published.EPOCHS}; its text, with a limit of "
        f"{published.LIMIT} misclassified, names {published.LATEST} "
        f"({_pair(*published.TABLE2[published.LATEST][4:], 2)}) and {published.LATEST_WIDENED}.",
    ]  # fmt: skip


_TABLE2 = "whole", "duplicated", "partition", "widen"


def _alone_row(name: str, way: Way, base: Way, theirs: float, speedup: float) -> tuple[str, ...]:
    ours = shown(way.finals, way.runs[0].metric), f"{way.parallel:.1f}", _gain(base, way.parallel)
    return (name, "", *ours, "", f"{100 * theirs / published.IMAGES:.2f}", f"{speedup:.2f}")


def _theirs(row: published.Merge) -> tuple[str, ...]:
    to_percent = 100 / published.IMAGES
    return (
        f"{to_percent * row.widened:.2f} ± {to_percent * row.widened_spread:.2f}",
        f"{to_percent * row.partitioned:.2f} ± {to_percent * row.partitioned_spread:.2f}",
        _pair(row.series, row.parallel, 2),
    )


def _pair(series: float | None, parallel: float, digits: int) -> str:
    return f"{'-' if series is None else f'{series:.{digits}f}'} / {parallel:.{digits}f}"


def _speedup(base: Way, way: Way) -> str:
    return _pair(None if way.series is None else base.parallel / way.series, base.parallel / way.parallel, 2)


def _latest(name: str, known: Mapping[int, Way], base: Way) -> str:
    """The latest merge whose mean error is within a standard deviation of the baseline's."""
    within = [at for at, way in known.items() if way.mean <= base.mean + base.spread]
    if not within:
        return f"**{name}**: no merge has a mean error within one standard deviation of the duplicated network's."
    way = known[max(within)]
    told = f"{_gain(base, way.parallel)} times as fast in parallel"
    if way.series is not None:
        told = f"{_gain(base, way.series)} times as fast in series and {told}"
    return (
        f"**{name}**: the latest merge whose mean error is within one standard deviation of the duplicated network's "
        f"(or below) is at epoch {max(within)}: {told}."
    )


def _gain(base: Way, seconds: float) -> str:
    return f"{base.parallel / seconds:.2f}"


def faster(experiment: str) -> Callable[[Records], list[Block]]:
    """The section on the time to the baseline's final metric."""

    def section(records: Records) -> list[Block]:
        times, runs = records.timed(experiment), records.of(experiment)
        if times is None or not any(run.method == "whole" for run in runs):
            return []
        return _faster(experiment, ways(runs, times))

    return section


def _faster(experiment: str, found: list[Way]) -> list[Block]:
    """The section's blocks: a row per way, the fastest that is as good, the whole with fewer epochs, a figure."""
    base = _baseline(found)
    run = base.runs[0]
    longest = run.epochs
    columns = ("trained", "rate", "seeds", unit(run.metric), "seconds", "speedup", "as good as the baseline")
    rows = [
        (way.name, way.runs[0].rate, str(len(way.runs)), shown(way.finals, run.metric),
         _pair(way.series, way.parallel, 1), _speedup(base, way),
         "the baseline" if way is base else "yes" if way.mean <= base.mean else "no")
        for way in sorted(found, key=lambda way: way.parallel)
    ]  # fmt: skip
    alone = "whole", "duplicated", "shallow"
    good = [way for way in found if way.mean <= base.mean and way.runs[0].method not in alone]
    at = base.parallel, base.mean, base.spread
    drawn = {
        how: figures.times([(seconds, way.mean, way.spread, way.runs[0].method) for seconds, way in ran
                            if seconds is not None], at, unit(run.metric), how)
        for how, ran in (("in series", [(way.series, way) for way in found]),
                         ("in parallel", [(way.parallel, way) for way in found]))
    }  # fmt: skip
    return [
        f"## Time to the baseline's final {run.metric}: {run.network}",
        f"On {run.data}. The baseline is the whole with its {longest} epochs and the rate that served it best. As good "
        "is a way whose mean over seeds is at most the baseline's.",
        table(columns, rows, 2),
        _fastest(base, good),
        *_controls(base, found),
        *(Drawing(f"times_{experiment}_{how.split()[-1]}", f"Final {run.metric} over seconds, parts {how}", figure)
          for how, figure in drawn.items()),
    ]  # fmt: skip


def _controls(base: Way, found: list[Way]) -> list[str]:
    """What is sooner as good without any growth: the whole with fewer epochs, and networks that stay shallow."""
    tried = {kind: [way for way in found if way.runs[0].method == kind and way.parallel < base.parallel]
             for kind in ("whole", "shallow")}  # fmt: skip
    whole, shallow = (
        "; ".join(f"{way.name}, {_gain(base, way.parallel)} times as fast" for way in each if way.mean <= base.mean)
        for each in tried.values()
    )
    lines = [f"The whole alone is as good with fewer epochs, too: {whole}."] if whole else []
    lines += ["The whole alone, with fewer epochs, is not."] if tried["whole"] and not whole else []
    return [*lines, f"A network that stays shallow is as good, too: {shallow}."] if shallow else lines


def _baseline(found: Iterable[Way]) -> Way:
    """The whole that trained for the most epochs, at the rate that served it best."""
    wholes = [way for way in found if way.runs[0].method == "whole"]
    longest = max(way.runs[0].epochs for way in wholes)
    return min((way for way in wholes if way.runs[0].epochs == longest), key=lambda way: way.mean)


def advice(records: Records) -> list[Block]:
    """What `estimate` advised before training, beside what came of it."""
    rows = []
    for asked in {each.experiment: each for each in records.advice}.values():
        times, runs = records.timed(asked.experiment), records.of(asked.experiment)
        if times is None or not any(run.method == "whole" for run in runs):
            continue
        found = ways(runs, times)
        base = _baseline(found)
        tried = [way for way in found if way.runs[0].method == FITTED]
        fitted = {way.runs[0].stages[0]["k"]: way for way in sorted(tried, key=lambda way: -way.mean)}  # the best rate
        pays = {k: _paid(base, way) >= asked.pays for k, way in fitted.items()}
        right = pays.get(asked.k) if asked.k else not any(pays.values()) if pays else None
        by_hand = max((way for way in found if way.runs[0].method == "partition"), key=lambda way: _paid(base, way),
                      default=base)  # fmt: skip
        expected = [f"{row['k']}: {row['series']:.2f} / {row['parallel']:.2f} ({row['width']})" for row in asked.rows]
        rows.append((
            f"{runs[0].network}: {unit(runs[0].metric)}", shown(base.finals, runs[0].metric), "; ".join(expected),
            f"K={asked.k}" if asked.k else "don't divide",
            "; ".join(f"{k}: {_outcome(base, way)}" for k, way in fitted.items()),
            f"{by_hand.name}: {_outcome(base, by_hand)}" if _paid(base, by_hand) and by_hand is not base else "",
            "" if right is None else "yes" if right else "no",
        ))  # fmt: skip
    columns = ("network", "the whole alone", "K: in series / in parallel (width)", "advice", "K: outcome of fit",
               "the best by hand", "right")  # fmt: skip
    told = (
        "`estimate` measures a few steps before training: how many times as fast the parts' epochs and those of the "
        "merged whole would be. It advises a K whose parts are wide enough, if that is faster. The outcome: "
        "the metric of `fit`, with K and the baseline's epochs and no other option but, like the baseline, the best of "
        "the rates that were tried; its seeds; and how many times as fast it was, in series and in parallel, where it "
        "is as good as the baseline with these seeds. The advice is right where its K pays on one machine, or where "
        "none that was tried does."
    )
    return ["## Advice and outcome", told, table(columns, rows, len(columns))] if rows else []


def _paid(base: Way, way: Way) -> float:
    """How many times as fast as the baseline a way is as good on one machine, with the same seeds; 0 where it isn't."""
    seeds = {run.seed for run in way.runs}
    same = [run.final["metric"] for run in base.runs if run.seed in seeds]
    return base.parallel / way.series if way.series is not None and same and way.mean <= mean(same) else 0.0


def _outcome(base: Way, way: Way) -> str:
    """What came of a way, in words."""
    found = f"{shown(way.finals, way.runs[0].metric)} ({len(way.runs)} seed{'s' * (len(way.runs) > 1)})"
    return f"{found}, {_speedup(base, way) if _paid(base, way) else 'not as good'}"


def _fastest(base: Way, good: list[Way]) -> str:
    """The fastest way that is as good, with all parts on one machine and with one machine for each."""
    series = min(((way.series, way) for way in good if way.series is not None), key=lambda pair: pair[0], default=None)
    told = [] if series is None else [f"in series: {series[1].name}, {_gain(base, series[0])} times as fast"]
    if good:
        parallel = min(good, key=lambda way: way.parallel)
        told.append(f"in parallel: {parallel.name}, {_gain(base, parallel.parallel)} times as fast")
    return f"**Fastest {'; '.join(told)}.**" if told else "**No other way is as good.**"


def engines(records: Records) -> list[Block]:
    """How fast all parts are by each engine, on each device."""
    last = {(row.device, row.network, row.k): row for row in records.engines}
    columns = ("device", "network", "K", "the whole, ms", "ratio of MACs", "series", "fused", "processes")
    rows = [
        (row.device, row.network, str(row.k), f"{1000 * row.seconds:.1f}",
         *("" if gain is None else f"{gain:.2f}" for gain in (row.ideal, row.series, row.fused, row.processes)))
        for row in last.values()
    ]  # fmt: skip
    told = "How many times as fast as a step of the whole one of all parts is, by engine; medians of steps by turns."
    return ["## Speed of the engines", told, table(columns, rows, 2)] if rows else []


def method(records: Records) -> list[Block]:
    """How the figures came about."""
    found = [run.machine for run in records.runs] + [times.machine for times in records.times]
    found += [row.machine for row in records.engines] + [asked.machine for asked in records.advice]
    machines = {", ".join(f"{key} {value}" for key, value in machine.items()) for machine in found}
    lines = ["± is the standard deviation over seeds (n - 1)."]
    if records.fits:
        lines.append("Curves are over seconds of training as it ran; a band goes from the best part to the worst.")
    if records.times:
        lines.append(
            "Seconds of training are epochs times the median epoch of each network, measured by turns in one run with "
            "one thread, without tests in between. In series all parts share that thread, by the faster engine; in "
            "parallel each has a machine of its own, and none waits for another."
        )
    lines += [f"Machine: {machine}." for machine in sorted(machines)]
    lines.append("From " + ", ".join(f"`{_file(file)}`" for file in records.files) + ".")
    return ["## How", "\n".join(f"* {line}" for line in lines)]


def _file(path: Path) -> str:
    """The file's name; with that of its folder where all such files have the same name."""
    return f"{path.parent.name}/{path.name}" if path.name == FIT else path.name


def title(records: Records) -> str:
    """What the page is called: the paper's experiments, or the networks that `fit` trained."""
    if records.runs or records.times or records.diversity:
        return "Partitioned training: what the paper found, and what we do"
    networks = dict.fromkeys(Path(fit.model).name for fit in records.fits)
    numbers = " and ".join(str(k) for k in sorted({fit.k for fit in records.fits}))
    return f"{', '.join(networks)} in {numbers} parts"


def sections(records: Records, folder: Path) -> list[Block]:
    """All that can be told of the records.

    :param folder: of the report, from which links lead.
    """
    experiments = dict.fromkeys(run.experiment for run in records.runs)
    runs: list[Callable[[Records], list[Block]]] = [*map(faster, experiments), fits, partial(each_fit, folder=folder)]
    told = parts_table, diversity, curves, merges, *runs, advice, engines, method
    return [block for section in told for block in section(records)]
