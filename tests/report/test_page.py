"""The report as a page: Markdown with pictures beside it, or HTML in one file."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from onnxpart.errors import ModelError
from onnxpart.report.page import fit_pictures, write
from onnxpart.report.records import read
from tests.networks.records import fitted, table2, times, written


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
    assert all(source.startswith("data:image/svg+xml;base64,") for source in tags.pictures)
    assert '<td style="text-align:right">20.50 ± 1.41</td>' in text
    assert not list(tmp_path.glob("*.svg"))


def test_names_are_text_and_the_title_is_the_runs_own(tmp_path: Path) -> None:
    folder = fitted(tmp_path / "run", 0, 0.2)
    report = folder / "report.json"
    report.write_text(report.read_text().replace("net.onnx", "<b>|net.onnx"))
    write(read([folder]), tmp_path / "out.html")
    text, tags = (tmp_path / "out.html").read_text(), Tags()
    tags.feed(text)
    assert not tags.open
    assert "<title>&lt;b&gt;|net.onnx in 2 parts</title>" in text
    assert "<td>&lt;b&gt;|net.onnx</td>" in text
    assert "paper" not in text


def test_pictures_of_a_fit_are_named_by_what_they_show(tmp_path: Path) -> None:
    (run,) = read([fitted(tmp_path / "run", 0, 0.2)]).fits
    assert {name: b"<title>net.onnx in 2 parts" in picture for name, picture in fit_pictures(run.report).items()} == {
        "curves_loss.svg": True,
        "curves_metric.svg": True,
    }
    assert list(fit_pictures({**run.report, "merged": None})) == ["curves_train_loss.svg"]


def test_a_section_without_records_is_left_out(tmp_path: Path) -> None:
    write(read([written(tmp_path, [times("mnist")])]), tmp_path / "out.md")
    text = (tmp_path / "out.md").read_text()
    assert re.findall("^## (.*)", text, re.MULTILINE) == ["Table 1: one part of K", "How"]
    assert "cpu a processor, python 3" in text


@pytest.mark.parametrize("name", ["out.md", "out.html", "out_times.svg"])
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
    with pytest.raises(ModelError, match="is an input of this command"):
        write(read([path]), path)
    assert path.read_bytes() == before
