"""The paper's figures (Miranda & Von Zuben, arXiv:1511.02954), as it gives them."""

from __future__ import annotations

from typing import NamedTuple


class Iteration(NamedTuple):
    """A row of Table 1: parameters of one part, and how many times as fast its iteration is."""

    parameters: int
    speedup: float


class Merge(NamedTuple):
    """A row of Table 2: misclassified of 10,000 and their standard deviation; speedup in series and in parallel."""

    widened: float
    widened_spread: float
    partitioned: float
    partitioned_spread: float
    series: float
    parallel: float


TABLE1 = {1: Iteration(431080, 1.0), 2: Iteration(109295, 2.10), 5: Iteration(18224, 3.17), 10: Iteration(4867, 4.17)}
EPOCHS, IMAGES = 520, 10_000
"""Of the schedule of Table 2, and images to test."""
ORIGINAL, ORIGINAL_SPREAD, ORIGINAL_SPEEDUP = 1182.95, 18.69, 0.88
DUPLICATED, DUPLICATED_SPREAD = 1184.60, 19.06
TABLE2 = {
    0: Merge(1175.75, 13.78, 1177.20, 19.34, 1.00, 1.00),
    50: Merge(1189.80, 23.71, 1183.25, 20.89, 1.04, 1.07),
    100: Merge(1187.80, 21.87, 1180.15, 18.87, 1.08, 1.14),
    150: Merge(1198.80, 16.52, 1177.55, 18.36, 1.12, 1.23),
    200: Merge(1198.85, 24.57, 1173.75, 12.64, 1.17, 1.33),
    250: Merge(1200.85, 20.01, 1178.40, 21.15, 1.22, 1.45),
    300: Merge(1219.60, 18.34, 1177.05, 24.13, 1.28, 1.60),
    350: Merge(1244.05, 18.46, 1177.55, 19.46, 1.34, 1.78),
    400: Merge(1278.15, 16.38, 1184.10, 20.91, 1.45, 2.09),
    450: Merge(1325.95, 17.23, 1191.75, 24.87, 1.59, 2.54),
    500: Merge(1388.50, 12.36, 1257.70, 18.15, 1.75, 3.24),
}
"""By the epoch of the merge."""
LIMIT, LATEST, LATEST_WIDENED = 1190, 400, 100
"""What the text calls the same error, and the latest merges of partitioning and of Net2WiderNet that keep it."""
