"""Equations of Einsum."""

from __future__ import annotations


def parse(equation: str) -> tuple[list[str], str]:
    """Take an equation apart.

    :returns: the letters of each operand and of the result, an ellipsis as three dots among them; where no result is
        written it is the ellipsis and, in order, the letters that stand once.
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = "".join(terms).replace(".", "")
        out = ("..." if "..." in left else "") + "".join(sorted(c for c in letters if letters.count(c) == 1))
    return terms, out
