"""What runs left behind: lines of the paper's experiments, and the reports of `fit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from onnxpart.errors import ModelError
from onnxpart.storage.json_text import from_json

FIT, PARTITION = "report.json", "partition.html"
"""What `fit` leaves in its folder: its report, and the page of its partition."""
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One seed of one way to train. `metric` is the name of the test metric, which is better when lower.

    `stages`: (`k`, `epochs`) each; k = 1 is the whole; `blocks`, where a shallow network has but so many of each stack.
    `curve`: points after `epoch` epochs in all, of a `part` of a `stage` or, where part is None, of the whole. `final`:
    `loss` and `metric`. `edges`: how new edges start (0: zero). `lr`: the rate, as a share of the experiment's.
    `trained`: the stages that `fit` chose, where it was given one.
    """

    experiment: str
    network: str
    data: str
    metric: str
    method: str
    rate: str
    seed: int
    epochs: int
    stages: Sequence[Mapping[str, int]]
    curve: Sequence[Mapping[str, Any]]
    final: Mapping[str, float]
    machine: Mapping[str, str]
    edges: float = 0.0
    lr: float = 1.0
    trained: Sequence[Mapping[str, int]] = ()

    @property
    def way(self) -> tuple[object, ...]:
        """What runs that differ only by their seed have in common."""
        return (
            self.method,
            self.rate,
            self.edges,
            self.lr,
            tuple((stage["k"], stage["epochs"], stage.get("blocks", 0)) for stage in self.stages),
        )

    @property
    def merge_at(self) -> int:
        """After how many epochs the whole begins."""
        return sum(stage["epochs"] for stage in self.stages[:-1])

    @property
    def merged(self) -> Mapping[str, Any] | None:
        """The point of the whole right after merging."""
        whole = (point for point in self.curve if point["part"] is None and point["epoch"] == self.merge_at)
        return next(whole, None) if len(self.stages) > 1 else None


@dataclass(frozen=True)
class Times:
    """Seconds of an epoch: of the `whole`, the `duplicated` whole, and one part when cut into `"2"`, ...

    `together`: of all parts on one machine. `parameters` and `macs` are of the whole (`"1"`) and of one part. Those
    with 3 blocks of each stack are `"whole/3"`, `"1/3"` and `"2/3"`.
    """

    experiment: str
    network: str
    epoch: Mapping[str, float]
    together: Mapping[str, float]
    parameters: Mapping[str, int]
    macs: Mapping[str, int]
    machine: Mapping[str, str]

    def of(self, run: Run) -> tuple[float | None, float]:
        """Seconds of training of a run.

        :returns: with all parts on one machine (None where one part alone is trained), and with each on its own.
        :raises ModelError: when one of its networks wasn't timed.
        """
        if run.method in ("whole", "duplicated"):
            return (run.epochs * self.epoch[self._whole(run)],) * 2
        series = parallel = 0.0
        for stage in run.trained or run.stages:
            of = f"/{stage['blocks']}" if stage.get("blocks") else ""
            part, together = f"{stage['k']}{of}", self.together
            if stage["k"] == 1:
                part, together = f"whole{of}" if of else self._whole(run), self.epoch
            if part not in together:
                name = run.experiment
                raise ModelError(f"{name}: parts of K={part} weren't timed; run scripts/paper/times {name}.")
            parallel += stage["epochs"] * self.epoch[part]
            series += stage["epochs"] * together[part]
        return None if run.method == "widen" else series, parallel

    def _whole(self, run: Run) -> str:
        """The whole that a run trains: where no part is merged into it, it is the network itself."""
        divided = run.method != "whole" and any(stage["k"] > 1 for stage in run.stages)
        return "duplicated" if (divided or run.method == "duplicated") and "duplicated" in self.epoch else "whole"


@dataclass(frozen=True)
class Diversity:
    """Mean correlation of what pairs of `k` parts believe, and the beliefs of parts 0 and 1 [sample][part]."""

    experiment: str
    k: int
    seed: int
    epoch: int
    correlation: float
    pairs: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Speedups:
    """How many times as fast as a step of the whole one of all `k` parts is: by MACs (`ideal`) and by each engine.

    `seconds` of the whole's step. `processes` is None where it wasn't timed; `fused`, where parts can't be, too.
    """

    network: str
    k: int
    seconds: float
    ideal: float
    series: float
    fused: float | None
    processes: float | None


@dataclass(frozen=True)
class Engines(Speedups):
    """The same with where it was measured."""

    device: str
    machine: Mapping[str, str]


@dataclass(frozen=True)
class Advice:
    """What `estimate` advised for an experiment's network: the `k` to take, None for none.

    `rows`: `k`, `width`, and how many times as fast training would be in `series` and in `parallel`. `pays`: from what
    on it advises one.
    """

    experiment: str
    k: int | None
    pays: float
    rows: Sequence[Mapping[str, Any]]
    machine: Mapping[str, str]


@dataclass(frozen=True)
class Fitted:
    """A run of `fit`: its metric right after merging and at the end, or the loss where there is no metric.

    `folder` is where it was found. `report`: all of what `fit` says of it.
    """

    folder: Path
    report: Mapping[str, Any]
    model: str
    data: str
    metric: str
    k: int
    rounds: int
    merge_at: int
    epochs: int
    seed: int
    merged: float | None
    final: float | None
    seconds: float
    speedup: float | None


@dataclass(frozen=True)
class Records:
    """All that was found, and the files."""

    runs: Sequence[Run]
    times: Sequence[Times]
    diversity: Sequence[Diversity]
    engines: Sequence[Engines]
    advice: Sequence[Advice]
    fits: Sequence[Fitted]
    files: Sequence[Path]

    def of(self, experiment: str) -> list[Run]:
        """The runs of an experiment."""
        return [run for run in self.runs if run.experiment == experiment]

    def timed(self, experiment: str) -> Times | None:
        """What was measured of an experiment's networks last."""
        return next((times for times in reversed(self.times) if times.experiment == experiment), None)


KINDS = {"run": Run, "times": Times, "diversity": Diversity, "engines": Engines, "advice": Advice}


def read(paths: Sequence[Path]) -> Records:
    """Read files of JSON lines, folders of such, and folders that `fit` wrote.

    :param paths: of files and folders.
    :returns: all records; a run that is found twice counts once, as it was found last.
    :raises ModelError: when one can't be read, or holds nothing of that; when networks weren't timed.
    """
    found: dict[type, list[Any]] = {kind: [] for kind in (*KINDS.values(), Fitted)}
    files = [file for path in paths for file in _files(path)]
    for file in files:
        for item in [_fitted(file)] if file.name == FIT else _lines(file):
            found[type(item)].append(item)
    runs = {(run.experiment, run.way, run.seed): run for run in found[Run]}
    others = found[Times], found[Diversity], found[Engines], found[Advice], found[Fitted]
    records = Records(list(runs.values()), *others, files)
    for experiment in dict.fromkeys(run.experiment for run in records.runs):
        if records.timed(experiment) is None:
            raise ModelError(f"{experiment}: its networks weren't timed; run scripts/paper/times {experiment}.")
    return records


def _files(path: Path) -> list[Path]:
    """The files with records at a path.

    :raises ModelError: when there are none.
    """
    if not path.exists():
        raise ModelError(f"{path} doesn't exist; name a folder that fit wrote, or a file of an experiment's results.")
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.jsonl")) if not (path / FIT).is_file() else [path / FIT]
    found = [file for file in found if file.name != "metrics.jsonl"]
    if not found:
        raise ModelError(
            f"{path} contains neither {FIT} nor a *.jsonl file; name a folder that fit wrote, or a folder of results."
        )
    return found


def _lines(file: Path) -> Iterator[Run | Times | Diversity | Engines | Advice]:
    """The records in a file of JSON lines.

    :raises ModelError: when it can't be read, or a line is no record.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ModelError(f"{file} can't be read; name a file of JSON lines.") from None
    for number, line in enumerate(lines, 1):
        try:
            record = from_json(line)
            kind = KINDS[record["kind"]]
        except (ValueError, KeyError, TypeError):
            raise ModelError(f"{file}, line {number}, isn't a record of a run; name a file of results.") from None
        yield _made(kind, record, f"{file}, line {number}")


def _made(kind: type[T], record: Mapping[str, Any], place: str) -> T:
    """A record of a kind from a mapping.

    :raises ModelError: when a field is missing.
    """
    known = fields(kind)  # type: ignore[arg-type]
    missing = [field.name for field in known if field.name not in record and field.default is MISSING]
    if missing:
        raise ModelError(f"{place}, has no {missing[0]!r}; run the experiment again.")
    return kind(**{field.name: record[field.name] for field in known if field.name in record})


def _fitted(file: Path) -> Fitted:
    """The report of `fit` in brief.

    :raises ModelError: when it can't be read, or is something else.
    """
    try:
        data = from_json(file.read_text(encoding="utf-8"))
        which = "metric" if data["metric"] else "loss"
        last = data["whole"][-1] if data["whole"] else data["merged"]
        if not {"parts", "ensemble", "baseline", "as_good"} <= data.keys():
            raise KeyError
        return Fitted(
            file.parent, data, data["model"], data["data"], data["metric"] or "loss", data["k"], len(data["rounds"]),
            data["merge_at"], data["epochs"], data["settings"]["seed"], (data["merged"] or {}).get(which),
            (last or {}).get(which), data["seconds"]["parts"] + data["seconds"]["whole"], data["speedup"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise ModelError(f"{file} isn't a report of fit; run `onnxpart fit` again.") from None
