"""How many units each part takes: of a layer in proportion, of a grouped operator so that all groups are alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


def quotas(
    size: int, shares: Sequence[int], owed: Sequence[int] | None = None, load: Sequence[float] | None = None
) -> list[int]:
    """Divide `size` things in proportion to `shares`.

    Remainders go to those that are `owed` most (by earlier divisions of the same layer, in units of 1 / the sum of the
    shares), then to the least loaded, then to the first.

    :returns: one count per part, each within one of its exact share, summing to `size`.
    """
    total = sum(shares)
    result = [size * s // total for s in shares]
    weight = load or [0.0] * len(shares)
    due = owed or [0] * len(shares)
    order = sorted(range(len(shares)), key=lambda p: (-(size * shares[p] % total + due[p]), weight[p], p))
    for p in order[: size - sum(result)]:
        result[p] += 1
    return result


def balance(
    cells: Sequence[int], groups: NDArray[np.int64], sides: Sequence[int], shares: Sequence[int]
) -> Counts | None:
    """Divide cells of interchangeable units so that each part takes equally many of every group on one side.

    :param cells: number of unit classes in each cell. :param groups: int64 [cells, groups], how many units of a group
        one class of a cell is. :param sides: for each group, which side of which operator it is on.
    :param shares: relative sizes of the parts.
    :returns: int64 [cells, parts], or None where no such division exists; counts are within one of their exact shares
        wherever that is possible, else as near as can be.
    """
    widths: dict[int, int] = {}
    for group, side in enumerate(sides):
        width = int(groups[:, group] @ np.asarray(cells))
        if widths.setdefault(side, width) != width:
            return None
    names = list(widths)
    index = [names.index(side) for side in sides]
    totals = np.asarray([widths[name] for name in names])
    simple = np.asarray([quotas(size, shares) for size in cells])
    if _even(groups.T @ simple, index, np.outer(totals, shares) / sum(shares)):
        return simple
    tight = _solve(np.asarray(cells), groups, index, totals, shares, tight=True)
    return tight if tight is not None else _solve(np.asarray(cells), groups, index, totals, shares, tight=False)


def _even(counts: Counts, sides: Sequence[int], share: NDArray[np.float64]) -> bool:
    """Whether the groups of each side have the same counts, within one of the exact `share` [sides, parts]."""
    first = {side: counts[i] for i, side in reversed(list(enumerate(sides)))}
    near = all((np.abs(first[side] - share[side]) < 1).all() for side in first)
    return near and all(np.array_equal(counts[i], first[side]) for i, side in enumerate(sides))


def _solve(
    sizes: Counts,
    groups: NDArray[np.int64],
    sides: Sequence[int],
    totals: Counts,
    shares: Sequence[int],
    *,
    tight: bool,
) -> Counts | None:
    """The integer program: variables are counts by cell, totals by side, and deviations by cell.

    `tight`: counts and totals within one of their exact shares; else the sum of deviations is minimised.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array, csr_array, eye_array, hstack, kron, vstack

    n, k, m, s = len(sizes), len(shares), groups.shape[1], len(totals)
    a, b = n * k, s * k
    ones = np.ones((1, k))
    side = csr_array(coo_array((np.ones(m), (np.arange(m), sides)), shape=(m, s)))
    equal = vstack(
        [
            hstack([kron(eye_array(n), ones), csr_array((n, b)), csr_array((n, a))]),
            hstack([kron(groups.T, eye_array(k)), kron(-side, eye_array(k)), csr_array((m * k, a))]),
            hstack([csr_array((s, a)), kron(eye_array(s), ones), csr_array((s, a))]),
        ]
    )
    right = np.concatenate([sizes, np.zeros(m * k), totals])
    even, share = (np.outer(v, shares).reshape(-1) / sum(shares) for v in (sizes, totals))
    one = eye_array(a)
    away = vstack([hstack([one, csr_array((a, b)), -one]), hstack([-one, csr_array((a, b)), -one])])
    if tight:
        low, high = [np.floor(even), np.floor(share)], [np.ceil(even), np.ceil(share)]
    else:
        low, high = [np.zeros(a), np.ones(b)], [np.repeat(sizes, k), np.repeat(totals, k)]
    problem = milp(
        c=np.concatenate([np.zeros(a + b), np.ones(a)]),
        integrality=np.concatenate([np.ones(a + b, np.int64), np.zeros(a, np.int64)]),
        bounds=Bounds(np.concatenate([*low, np.zeros(a)]), np.concatenate([*high, np.full(a, np.inf)])),
        constraints=[
            LinearConstraint(csr_array(equal), right, right),
            LinearConstraint(csr_array(away), -np.inf, np.concatenate([even, -even])),
        ],
    )
    return np.rint(problem.x[:a]).astype(np.int64).reshape(n, k) if problem.success else None
