"""The rules of the house that a reader relies on: tests mirror modules, docstrings of one form, tests apart."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "onnxpart").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
WITHOUT_TEST = {"__init__", "__main__"}
LONG = 10
"""Lines of a private function that has no docstring, at most."""
Function = ast.FunctionDef | ast.AsyncFunctionDef
CLASSES = set(re.findall(r"^ *class (\w+)", "\n".join(m.read_text(encoding="utf-8") for m in MODULES), re.MULTILINE))
"""Names of the project's classes, its errors among them."""


def name(path: Path) -> str:
    """A file as the tests' ids show it."""
    return str(path.relative_to(ROOT))


def mirror(module: Path) -> Path:
    """Where the tests of a module are."""
    place = module.relative_to(ROOT / "onnxpart")
    return ROOT / "tests" / place.with_name(f"test_{place.name}")


def test_modules_have_tests() -> None:
    """Every module of the compiler; those of `onnxpart.torch` that have no file are tested through others."""
    core = [m for m in MODULES if "torch" not in m.relative_to(ROOT / "onnxpart").parts]
    missing = [name(m) for m in core if m.stem not in WITHOUT_TEST and not mirror(m).exists()]
    assert not missing, "\n".join(["modules without a file of tests:", *missing])


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_no_test_imports_another(path: Path) -> None:
    imported = re.findall(r"^\s*(?:from|import) +(tests\.[\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(module.startswith("tests.networks") for module in imported)


# -- docstrings -------------------------------------------------------------------------------------------------------


def definitions(tree: ast.Module) -> Iterator[tuple[Function | ast.ClassDef, ast.AST]]:
    """Functions and classes of a module with what they stand in, but for those inside functions."""
    open_ = [tree]
    while open_:
        parent = open_.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef):
                open_.append(node)
            if isinstance(node, Function | ast.ClassDef):
                yield node, parent


def faults(source: str) -> list[str]:
    """What is wrong with the docstrings of a module."""
    tree = ast.parse(source)
    result = [] if ast.get_docstring(tree) else ["the module has no docstring"]
    for node, parent in definitions(tree):
        text = ast.get_docstring(node)
        if text is None and needs_docstring(node, parent):
            result.append(f"{node.name} (line {node.lineno}) has no docstring")
        if text is not None:
            result += [f"{node.name} (line {node.lineno}): {fault}" for fault in wrong_fields(node, text)]
    return result


def needs_docstring(node: Function | ast.ClassDef, parent: ast.AST) -> bool:
    """Public functions and classes do, and whatever is long."""
    if isinstance(node, ast.ClassDef):
        return not node.name.startswith("_")
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    public = isinstance(parent, ast.Module) and not node.name.startswith("_")
    return (public and not overload(node)) or (lines > LONG and not node.name.startswith("__"))


def overload(node: Function) -> bool:
    """Whether it declares a form of a function only."""
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


def wrong_fields(node: Function | ast.ClassDef, text: str) -> Iterator[str]:
    """Fields of a docstring that name nothing there is."""
    known = set(arguments(node))
    for parameter in re.findall(r":param ([^:]+):", text):
        if known and parameter.split()[-1].lstrip("*") not in known:
            yield f":param {parameter}: isn't in the signature"
    for kinds in re.findall(r":raises ([^:]+):", text):
        for kind in re.split(r",\s*|\s+or\s+", kinds):
            if kind not in CLASSES and not isinstance(locate(kind), type):
                yield f":raises {kind}: is no known error"


def arguments(node: Function | ast.ClassDef) -> Iterator[str]:
    """Names of the arguments of a function, or of the fields and arguments that make a class."""
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                yield inner.target.id
            if isinstance(inner, Function) and inner.name == "__init__":
                yield from arguments(inner)
        return
    found = node.args
    for argument in (*found.posonlyargs, *found.args, *found.kwonlyargs, found.vararg, found.kwarg):
        if argument is not None:
            yield argument.arg


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_docstrings(path: Path) -> None:
    assert not faults(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("x = 1", "the module has no docstring"),
        ('"""A."""\ndef f() -> None: ...', "f (line 2) has no docstring"),
        ('"""A."""\nclass C: ...', "C (line 2) has no docstring"),
        ('"""A."""\ndef _f() -> None:\n' + "    x = 1\n" * LONG, "_f (line 2) has no docstring"),
        ('"""A."""\ndef f(a):\n    """B.\n\n    :param b: C."""', "f (line 2): :param b: isn't in the signature"),
        (
            '"""A."""\ndef f():\n    """B.\n\n    :raises Nothing: C."""',
            "f (line 2): :raises Nothing: is no known error",
        ),
    ],
)
def test_a_fault_is_found(source: str, fault: str) -> None:
    assert faults(source) == [fault]


@pytest.mark.parametrize(
    "source",
    [
        '"""A."""\ndef _f() -> None:\n' + "    x = 1\n" * (LONG - 1),
        '"""A."""\ndef f(a, *rest):\n    """B.\n\n    :param a: C. :param rest: D.\n    :raises ModelError: E."""',
        '"""A."""\ndef f():\n    """B.\n\n    :raises onnx.checker.ValidationError, OSError: C."""',
    ],
)
def test_what_is_right_is_no_fault(source: str) -> None:
    assert faults(source) == []


# -- text files -------------------------------------------------------------------------------------------------------


def without_encoding(source: str) -> list[int]:
    """Lines that read or write text in whatever encoding the machine has."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        text = name in ("read_text", "write_text") or (name in ("open", "fdopen") and modes and "b" not in modes[-1])
        if text and not any(keyword.arg == "encoding" for keyword in node.keywords):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_text_files_have_an_encoding(path: Path) -> None:
    assert without_encoding(path.read_text(encoding="utf-8")) == []


def test_a_text_file_without_encoding_is_found() -> None:
    source = "p.read_text()\np.open('a')\np.open('rb')\np.write_text(x)\nopen(p, 'w', encoding='utf-8')\n"
    assert without_encoding(source) == [1, 2, 4]
