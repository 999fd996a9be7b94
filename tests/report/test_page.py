import json
import re
import sys
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from onnxpart.cli.app import app
from onnxpart.errors import ModelError, OnnxpartError, UsageError
from onnxpart.report.page import write
from onnxpart.report.records import read

MACHINE = {"cpu": "a processor", "python": "3"}
SECONDS = {"whole": 10.0, "duplicated": 8.0, "2": 3.0, "4": 1.0, "5": 1.0, "10": 0.5}


def run(experiment: str, method: str, stages: Sequence[tuple[int, int]], seed: int, final: float, **others: Any) -> Any:
    epochs, merge_at = sum(n for _, n in stages), sum(n for _, n in stages[:-1])
    parts = [
        {"epoch": merge_at, "stage": 0, "part": p, "loss": 4 * final, "metric": 3 * final}
        for p in range(stages[0][0])
        if len(stages) > 1
    ]
    whole = [{"epoch": at, "stage": len(stages) - 1, "part": None, "loss": 1.0, "metric": metric}
             for at, metric in ((merge_at, 2 * final), (epochs, final))]  # fmt: skip
    return {
        "kind": "run", "experiment": experiment, "network": "a network", "data": "some data", "metric": "error",
        "method": method, "rate": "paper", "seed": seed, "epochs": epochs,
        "stages": [{"k": k, "epochs": n} for k, n in stages], "curve": [*parts, *whole],
        "final": {"loss": 1.0, "metric": final}, "machine": MACHINE, **others,
    }  # fmt: skip


def times(experiment: str, **others: Any) -> dict[str, Any]:
    return {
        "kind": "times", "experiment": experiment, "network": "a network", "epoch": SECONDS,
        "together": {"2": 5.0, "4": 3.5, "5": 4.0, "10": 6.0},
        "parameters": {"1": 431080, "2": 109295}, "macs": {"1": 300, "2": 100}, "machine": MACHINE, **others,
    }  # fmt: skip


def written(folder: Path, records: Iterable[Any], name: str = "results.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def page(folder: Path, records: Iterable[Any]) -> str:
    write(read([written(folder, records)]), folder / "out.md")
    return (folder / "out.md").read_text()


def rows(text: str, title: str) -> dict[str, list[str]]:
    """The first table of a section, by the first cell of each row."""
    section = text.split(f"## {title}")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def table2() -> list[Any]:
    found = [times("cifar10")]
    for seed, off in enumerate((-0.01, 0.01)):
        found += [run("cifar10", "whole", [(1, 52)], seed, 0.30 + off)]
        found += [run("cifar10", "duplicated", [(2, 52)], seed, 0.20 + off)]
        for at, error in ((0, 0.20), (40, 0.205), (50, 0.25)):
            found += [run("cifar10", "partition", [(2, at), (1, 52 - at)], seed, error + off)]
            found += [run("cifar10", "widen", [(2, at), (1, 52 - at)], seed, error + 0.02 + off)]
    return found


def test_table_1_has_sizes_and_speed_beside_the_papers(tmp_path: Path) -> None:
    found = rows(page(tmp_path, [times("mnist")]), "Table 1")
    assert found == {
        "1": ["431,080", "431,080", "1.00", "1.00", "1.00"],
        "2": ["109,295", "109,295", "3.33", "2.10", "3.00"],
    }


@pytest.mark.parametrize(("last", "told"), [(0.5, "it falls as K grows"), (0.95, "it does not fall")])
def test_diversity_is_a_mean_over_seeds(tmp_path: Path, last: float, told: str) -> None:
    found = [
        {"kind": "diversity", "experiment": "mnist", "k": k, "seed": seed, "epoch": 3, "correlation": value + seed / 10,
         "pairs": [[0.1, 0.2], [0.8, 0.9]] if seed == 0 else []}
        for k, value in ((2, 0.8), (5, last)) for seed in (0, 1)
    ]  # fmt: skip
    text = page(tmp_path, found)
    assert rows(text, "Figure 2")["2"] == ["2", "0.850 ± 0.071"]
    assert told in text
    assert (tmp_path / "out_figure2.png").read_bytes().startswith(b"\x89PNG")


def test_figure_3_has_parts_merged_and_final_errors(tmp_path: Path) -> None:
    found = [times("mnist"), run("mnist", "whole", [(1, 20)], 0, 0.02)]
    found += [run("mnist", "partition", [(2, at), (1, 20 - at)], 0, 0.01 + at / 1000) for at in (0, 10)]
    text = page(tmp_path, found)
    assert rows(text, "Figure 3")["1"] == ["1", "", "", "2.00", ""]
    assert rows(text, "Figure 3")["2"] == ["1", "6.00", "4.00", "2.00", "1.00"]


def test_table_2_by_hand(tmp_path: Path) -> None:
    text = page(tmp_path, table2())
    found = rows(text, "Table 2")
    assert found["original"][:4] == ["", "30.00 ± 1.41", "520.0", "0.80"]
    assert found["duplicated"][:4] == ["", "20.00 ± 1.41", "416.0", "1.00"]
    # 40 epochs of both parts together (5 s) or of one (3 s), and 12 of the duplicated whole (8 s)
    assert found["merged at 40"][:4] == ["22.50 ± 1.41", "20.50 ± 1.41", "296.0 / 216.0", "1.41 / 1.93"]
    assert found["merged at 40"][4:] == ["12.78 ± 0.16", "11.84 ± 0.21", "1.45 / 2.09"]
    assert "**Partitioning**: the latest merge" in text
    assert "at epoch 40: 1.41 times as fast in series and 1.93 times as fast in parallel." in text
    assert "**Net2WiderNet**: no merge has a mean error within one standard deviation" in text


def test_table_2_is_about_as_many_parts_as_the_duplicated_network(tmp_path: Path) -> None:
    others = [run("cifar10", "partition", [(4, 40), (1, 12)], seed, 0.9) for seed in (0, 1)]
    assert rows(page(tmp_path, [*table2(), *others]), "Table 2") == rows(page(tmp_path, table2()), "Table 2")


def test_time_to_the_baselines_error(tmp_path: Path) -> None:
    found = [times("language")]
    found += [run("language", "whole", [(1, n)], 0, error, rate="cosine") for n, error in ((20, 0.2), (10, 0.3))]
    found += [run("language", "whole", [(1, 20)], 0, 0.25)]
    found += [run("language", "partition", [(4, 10), (1, 1)], 0, error, rate="restart") for error in (0.2,)]
    found += [run("language", "levels", [(4, 4), (2, 2), (1, 1)], 0, 0.21, rate="restart", edges=0.5)]
    text = page(tmp_path, found)
    table = rows(text, "Time to the baseline's final error: a network")
    assert table["whole, 20 epochs"][-1] == "no", "the last row of that name has the other rate"
    assert "the baseline |" in text
    assert table["partition: 10 of K=4 + 1 of K=1"] == ["restart", "1", "20.00", "43.0 / 18.0", "4.65 / 11.11",
                                                        "yes"]  # fmt: skip
    levels = table["levels: 4 of K=4 + 2 of K=2 + 1 of K=1, new edges 0.5"]
    assert levels[-3:] == ["32.0 / 18.0", "6.25 / 11.11", "no"]
    assert "Fastest in series: partition: 10 of K=4 + 1 of K=1, 4.65 times as fast" in text
    assert "The whole alone, with fewer epochs, is not." in text


def test_a_widened_network_trains_one_part(tmp_path: Path) -> None:
    found = [times("language"), run("language", "whole", [(1, 20)], 0, 0.1),
             run("language", "widen", [(2, 10), (1, 1)], 0, 0.1)]  # fmt: skip
    assert "- / 38.0" in page(tmp_path, found)


def test_other_metrics_are_no_percentages(tmp_path: Path) -> None:
    found = [times("language"), run("language", "whole", [(1, 20)], 0, 2.5, metric="bits per character")]
    assert "| 2.5 |" in page(tmp_path, found)


def fitted(folder: Path, seed: int, final: float) -> Path:
    folder.mkdir()
    data = {
        "model": "net.onnx", "data": "npz:d.npz", "metric": "error", "k": 2, "rounds": [3], "merge_at": 3, "epochs": 5,
        "settings": {"seed": seed}, "merged": {"loss": 1.0, "metric": 0.5}, "whole": [{"loss": 1.0, "metric": final}],
        "seconds": {"parts": 2.0, "whole": 3.0}, "speedup": 1.5,
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(data))
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def test_runs_of_fit_are_grouped_over_seeds(tmp_path: Path) -> None:
    folders = [fitted(tmp_path / f"seed{seed}", seed, final) for seed, final in enumerate((0.1, 0.3))]
    write(read(folders), tmp_path / "out.md")
    found = rows((tmp_path / "out.md").read_text(), "Runs of fit")
    assert found["net.onnx"] == ["npz:d.npz", "2", "1", "3", "5", "2", "error, %", "50.00 ± 0.00", "20.00 ± 14.14",
                                 "5.0", "1.50"]  # fmt: skip


class Tags(HTMLParser):
    """Checks that tags close as they open, and keeps where pictures come from."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")
        elif tag not in ("meta", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "img":
            assert self.open.pop() == tag


def test_the_html_is_one_file(tmp_path: Path) -> None:
    write(read([written(tmp_path, table2())]), tmp_path / "out.html")
    text, tags = (tmp_path / "out.html").read_text(), Tags()
    tags.feed(text)
    assert not tags.open
    assert tags.pictures
    assert all(source.startswith("data:image/png;base64,") for source in tags.pictures)
    assert '<td style="text-align:right">20.50 ± 1.41</td>' in text
    assert not list(tmp_path.glob("*.png"))


def test_a_section_without_records_is_left_out(tmp_path: Path) -> None:
    text = page(tmp_path, [times("mnist")])
    assert re.findall("^## (.*)", text, re.MULTILINE) == ["Table 1: one part of K", "How"]
    assert "cpu a processor, python 3" in text


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("nothing\n", "bad.jsonl, line 1, is no record of a run"),
        ('{"kind": "else"}\n', "bad.jsonl, line 1, is no record of a run"),
        ("[]\n", "bad.jsonl, line 1, is no record of a run"),
        ('{"kind": "times", "experiment": "mnist"}\n', "bad.jsonl, line 1, has no 'network'"),
    ],
)
def test_bad_lines(tmp_path: Path, lines: str, expected: str) -> None:
    (tmp_path / "bad.jsonl").write_text(lines)
    with pytest.raises(ModelError, match=re.escape(expected)):
        read([tmp_path])


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="doesn't exist; name a folder"):
        read([tmp_path / "none"])
    with pytest.raises(ModelError, match=r"holds no report.json and no \*.jsonl"):
        read([tmp_path])
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ModelError, match="is no report of fit"):
        read([tmp_path])
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"bad.jsonl can't be read"):
        read([tmp_path / "bad.jsonl"])


def test_a_run_whose_networks_were_not_timed(tmp_path: Path) -> None:
    found = [times("language"), run("language", "whole", [(1, 2)], 0, 0.1),
             run("language", "partition", [(3, 1), (1, 1)], 0, 0.1)]  # fmt: skip
    with pytest.raises(OnnxpartError, match="language: parts of K=3 weren't timed; run scripts/paper/times language"):
        page(tmp_path, found)


def test_the_command(tmp_path: Path) -> None:
    source = written(tmp_path, table2())
    done = CliRunner().invoke(app, ["report", str(source), "-o", str(tmp_path / "r.html")])
    assert (done.exit_code, done.stdout) == (0, f"wrote {tmp_path / 'r.html'}\n")
    wrong = CliRunner().invoke(app, ["report", str(source), "-o", str(tmp_path / "r.txt")])
    assert isinstance(wrong.exception, UsageError) or wrong.exit_code != 0
    assert not (tmp_path / "r.txt").exists()


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path, table2())
    for name in [name for name in sys.modules if name.startswith(("onnxpart.report.page", "onnxpart.report.sections",
                                                                  "onnxpart.report.figures"))]:  # fmt: skip
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = CliRunner().invoke(app, ["report", str(source), "-o", str(tmp_path / "r.html")])
    assert done.exit_code == 2
    assert "pip install 'onnxpart[train]'" in done.output


def test_networks_that_were_not_timed(tmp_path: Path) -> None:
    with pytest.raises(OnnxpartError, match="language: its networks weren't timed; run scripts/paper/times language"):
        page(tmp_path, [run("language", "whole", [(1, 2)], 0, 0.1)])


def test_a_seed_that_is_found_twice_counts_once(tmp_path: Path) -> None:
    once = [run("language", "whole", [(1, 20)], seed, 0.1) for seed in (0, 1)]
    text = page(tmp_path, [times("language"), *once, *once])
    assert rows(text, "Time to the baseline's final error: a network")["whole, 20 epochs"][1] == "2"


def test_the_papers_own_latest_merges(tmp_path: Path) -> None:
    text = page(tmp_path, table2())
    assert "the paper's latest merges are at epochs 450 (1.59 / 2.54) and 250 (1.45) of 520" in text
    assert "with a limit of 1190 misclassified, names 400 (1.45 / 2.09) and 100." in text


@pytest.mark.parametrize("name", ["out.md", "out.html", "out_table_1.png"])
def test_only_reports_are_replaced(tmp_path: Path, name: str) -> None:
    records = read([written(tmp_path, table2())])
    files = {path for suffix in ("md", "html") for path in write(records, tmp_path / f"out.{suffix}")}
    for suffix in ("md", "html"):
        assert set(write(records, tmp_path / f"out.{suffix}")) <= files
    mine = next(path for path in sorted(files) if path.suffix == Path(name).suffix)
    mine.write_text("dear")
    with pytest.raises(ModelError, match="wasn't written by onnxpart and isn't replaced"):
        write(records, tmp_path / ("out.html" if mine.suffix == ".html" else "out.md"))
    assert mine.read_text() == "dear"
    mine.unlink()
    mine.symlink_to(tmp_path / "results.jsonl")
    with pytest.raises(ModelError, match="is a symbolic link"):
        write(records, tmp_path / ("out.html" if mine.suffix == ".html" else "out.md"))


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    path = written(tmp_path, table2(), "results.md")
    before = path.read_bytes()
    with pytest.raises(ModelError, match="is read itself"):
        write(read([path]), path)
    assert path.read_bytes() == before
