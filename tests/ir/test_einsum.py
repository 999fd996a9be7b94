"""Equations of Einsum, taken apart."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpart.ir.einsum import parse


@pytest.mark.parametrize(
    ("equation", "terms", "out"),
    [
        ("ij, jk -> ik", ["ij", "jk"], "ik"),
        ("...ij,jk->...ik", ["...ij", "jk"], "...ik"),
        ("ij,jk", ["ij", "jk"], "ik"),
        ("kj, ji", ["kj", "ji"], "ik"),
        ("...ij,...jk", ["...ij", "...jk"], "...ik"),
        ("bij->", ["bij"], ""),
    ],
)
def test_terms_and_result(equation: str, terms: list[str], out: str) -> None:
    assert parse(equation) == (terms, out)


@pytest.mark.parametrize("equation", ["ba", "kj,ji", "...ji,...ki", "ij,jk,kl"])
def test_a_result_that_is_not_written_is_that_of_numpy(equation: str) -> None:
    terms, out = parse(equation)
    rng = np.random.default_rng(0)
    sizes = {letter: size for size, letter in enumerate("abijkl", 2)}
    arrays = [rng.normal(size=[3] * ("..." in t) + [sizes[c] for c in t.replace(".", "")]) for t in terms]
    written = f"{','.join(terms)}->{out}"
    np.testing.assert_array_equal(np.einsum(equation, *arrays), np.einsum(written, *arrays))
