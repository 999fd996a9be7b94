"""What the documentation names exists: linked files and headings, files and functions, a README in each package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import typer

from onnxpart.cli.app import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "onnxpart"
DOCS = ROOT / ".github" / "docs"
FOLDERS = (".github", "models", "onnxpart", "scripts", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
READMES = [page for page in PAGES if page.is_relative_to(PACKAGE) and page.name == "README.md"]
PACKAGES = sorted(
    folder.parent
    for folder in PACKAGE.rglob("__init__.py")
    if folder.parent != PACKAGE and "operators" not in folder.parts
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
FILE = re.compile(r"[\w/.-]+\.py|[\w.-]+/(?:[\w.-]+/)*")
DOTTED = re.compile(r"[a-z_]\w*(?:\.\w+)*\.(?!(?:html|json|md|onnx)$)\w+")
TOPS = {"onnxpart", *(folder.name for folder in PACKAGES if folder.parent == PACKAGE)}


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = (re.sub(r"[^\w\- ]", "", found).lower() for found in HEADING.findall(prose(page)))
    return {heading.replace(" ", "-") for heading in headings}


def exists(page: Path, link: str) -> bool:
    """Whether the file or folder that a page links to is there, and the heading in it."""
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


def is_found(page: Path, word: str) -> bool:
    """Whether a file, folder or dotted name that a README names is there."""
    if FILE.fullmatch(word):
        return any((folder / word).exists() for folder in (page.parent, PACKAGE, ROOT))
    if DOTTED.fullmatch(word) and word.partition(".")[0] in TOPS:
        return resolves(word if word.startswith("onnxpart.") else f"onnxpart.{word}")
    return True


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or what is found in one."""
    first, *rest = name.split(".")
    found: object = import_module(first)
    for i, attribute in enumerate(rest):
        try:
            found = import_module(".".join([first, *rest[: i + 1]]))
        except ModuleNotFoundError:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
    return True


def words(page: Path) -> Iterator[str]:
    for code in CODE.findall(prose(page)):
        yield re.sub(r"\(.*\)$", "", code)


def test_each_package_has_a_readme() -> None:
    without = {folder.relative_to(PACKAGE).as_posix() for folder in PACKAGES if not (folder / "README.md").is_file()}
    assert not without


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(prose(page)) if not re.match(r"\w+:", link)]
    assert [link for link in links if not exists(page, link)] == []


@pytest.mark.parametrize("page", [*READMES, ROOT / ".github" / "CONTRIBUTING.md"], ids=named)
def test_files_and_functions_that_a_readme_names_exist(page: Path) -> None:
    assert [word for word in words(page) if not is_found(page, word)] == []


@pytest.mark.parametrize("page", [DOCS / "guide.md", DOCS / "errors.md", *DOCS.glob("tutorials/*.md")], ids=named)
def test_options_that_a_page_names_exist(page: Path) -> None:
    commands = typer.main.get_group(app).commands.values()
    parameters = [parameter for command in commands for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    assert sorted({*OPTION.findall(page.read_text(encoding="utf-8"))} - known - {"--help"}) == []


@pytest.mark.parametrize("page", [page for page in READMES if page.parent != PACKAGE], ids=named)
def test_a_readme_names_the_files_of_its_package(page: Path) -> None:
    files = {file.name for file in page.parent.glob("*.py")} - {"__init__.py"}
    assert sorted(files - set(words(page))) == []


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("merge.py", True),
        ("merging/merge.py", True),
        ("merging/", True),
        ("scripts/paper/", True),
        ("merging.merge.unmerge", True),
        ("onnxpart.torch.Handle.duplicate", True),
        ("plan.json", True),
        ("lanes.py", False),
        ("merging/levels.py", False),
        ("levels/", False),
        ("merging.merge.gather", False),
        ("onnxpart.levels", False),
    ],
)
def test_what_is_missing_is_noticed(word: str, found: bool) -> None:
    assert is_found(PACKAGE / "merging" / "README.md", word) is found


def test_a_missing_link_or_heading_is_noticed() -> None:
    page = PACKAGE / "cli" / "README.md"
    assert exists(page, "../README.md#glossary")
    assert not exists(page, "../README.md#words")
    assert not exists(page, "../GLOSSARY.md")
