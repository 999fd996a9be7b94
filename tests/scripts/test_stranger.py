"""What a stranger is made to type is what the README says."""

from __future__ import annotations

from scripts.stranger import ROOT, lines


def test_the_lines_are_those_of_the_readme() -> None:
    found = lines((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [line.split()[:2] for line in found] == [["pip", "install"], ["onnxpart", "inspect"], ["onnxpart", "split"]]
    assert "-k 2 --html page.html" in found[1]
