"""Equations of Einsum."""

from __future__ import annotations


def parse(equation: str) -> tuple[list[str], str]:
    """Take an equation apart.

    :returns: the letters of each operand and of the result, with an ellipsis as three dots. An equation without a
        result has the ellipsis as its result and then, in order, the letters that occur once.
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = "".join(terms).replace(".", "")
        out = ("..." if "..." in left else "") + "".join(sorted(c for c in letters if letters.count(c) == 1))
    return terms, out
