"""The page is one file that loads nothing, its data are as they were put in, and names are text whatever they hold."""

from __future__ import annotations

import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import onnx
import pytest

from models import BUILDERS
from onnxpart import ModelError, UsageError, analyse, load
from onnxpart.inspection.sizes import measure
from onnxpart.page.write import FILES, check, write
from onnxpart.planning.planner import partition
from tests.networks.command import run, run_json
from tests.networks.net import Net

MARKUP = "a</script><script>alert(1)</script><img src=x onerror=alert(2)>&lt;\"'\u2028\x1b[31m${title}"


class Elements(HTMLParser):
    """The elements of a page in order, and the text of its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.data = ""
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [value or "" for key, value in attrs if key in ("src", "href")]
        self._inside = ("id", "partition") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.data += data


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty but for a model."""
    onnx.save_model(BUILDERS["lenet"](), tmp_path / "lenet.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def markup() -> onnx.ModelProto:
    """A network whose names are markup."""
    n = Net(("x", ("N", 2, 4, 4)))
    h = n.conv("x", 2, 6, name=MARKUP)
    return n.model(n.conv(h, 6, 3, name="y" + MARKUP))


def written(model: onnx.ModelProto, path: Path) -> Elements:
    made = partition(analyse(load(model)), 2)
    write(made, measure(made.analysis, made.plan), path)
    return Elements(path.read_text(encoding="utf-8"))


def test_names_are_text(tmp_path: Path) -> None:
    odd, plain = written(markup(), tmp_path / "odd.html"), written(BUILDERS["lenet"](), tmp_path / "plain.html")
    assert odd.tags == plain.tags
    data = json.loads(odd.data)
    assert MARKUP in [card["title"] for card in data["cards"]]
    assert not re.search("[<>&]", odd.data)


def test_it_loads_nothing(tmp_path: Path) -> None:
    page = written(BUILDERS["lenet"](), tmp_path / "page.html")
    assert page.outside == []
    assert "default-src 'none'" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_licences_of_what_is_bundled_are_in_it(tmp_path: Path) -> None:
    written(BUILDERS["lenet"](), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(name in text for name in ("Chris Pettitt", "Mike Bostock", "d3-zoom 3.", "@dagrejs/dagre 3."))


def test_what_it_is_made_of_ships_with_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["package-data"]["onnxpart.page"] == list(FILES)


def test_the_same_partition_gives_the_same_page(tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        written(BUILDERS["light_squeezenet"](), tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_inspect_and_split_write_it(here: Path) -> None:
    assert "wrote the page page.html" in run("inspect", "lenet.onnx", "-k", 4, "--html", "page.html").stdout
    assert json.loads(Elements((here / "page.html").read_text(encoding="utf-8")).data)["k"] == 4
    data = run_json("split", "lenet.onnx", "-k", 2, "--shares", "3,1", "--no-check", "--html", "page.html")
    assert data["page"] == "page.html"
    assert json.loads(Elements((here / "page.html").read_text(encoding="utf-8")).data)["shares"] == [3, 1]


def test_the_path_of_the_model_is_not_in_it(here: Path) -> None:
    run("inspect", here / "lenet.onnx", "--html", "page.html")
    text = (here / "page.html").read_text(encoding="utf-8")
    assert "lenet.onnx in 2 parts" in text
    assert str(here) not in text


def test_nothing_else_is_replaced(here: Path) -> None:
    Path("mine.html").write_text("mine")
    with pytest.raises(ModelError, match=r"mine\.html wasn't written by onnxpart"):
        check(here / "mine.html", ".html", [])
    assert Path("mine.html").read_text() == "mine"


@pytest.mark.usefixtures("here")
def test_a_name_without_its_ending_is_refused() -> None:
    with pytest.raises(UsageError, match=r"page\.htm doesn't end with \.html"):
        check(Path("page.htm"), ".html", [])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--html", "page.txt"), "page.txt doesn't end with .html; give a name that does."),
        (
            ("--html", "no/page.html"),
            "the folder no of page.html doesn't exist; make it, or give another place.",
        ),
        (
            ("--html", "page.html", "--why", "conv1"),
            "--html, --node-data and --dot show the whole network, and --why explains one name; leave out one or the "
            "other.",
        ),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_read(arguments: tuple[str, ...], sentence: str) -> None:
    result = run("inspect", "lenet.onnx", *arguments, code=2)
    assert result.stderr == f"error: {sentence}\n"
    assert result.stdout == ""
    assert sorted(path.name for path in Path().iterdir()) == ["lenet.onnx"]


@pytest.mark.usefixtures("here")
def test_a_refused_page_leaves_no_split_behind() -> None:
    Path("mine.html").write_text("mine")
    result = run("split", "lenet.onnx", "-k", 2, "--html", "mine.html", code=1)
    assert result.stderr.startswith("error: mine.html wasn't written by onnxpart")
    assert not Path("lenet_parts").exists()
