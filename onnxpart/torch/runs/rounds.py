"""How a network is divided in each round of its parts' training: independent subnet training (Yuan et al., VLDB 2022).

After each round but the last the parts are merged into the original graph, which is divided anew, at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from onnxpart.emission.initial import INITS
from onnxpart.emission.split import Split, split
from onnxpart.errors import UsageError
from onnxpart.ir.model import Model
from onnxpart.planning.plan import ORDERS
from onnxpart.torch.part_random import seed_of

RANDOM = ORDERS[2]


@dataclass(frozen=True)
class Rounds:
    """How a network is divided in each round of its parts' epochs; `spans`: the epochs of each round, in order.

    A single round has the requested order, seed and first weights. Several rounds are divided at random, each by a seed
    of its own; from the second round on, the merged weights are the first weights.
    """

    model: Model
    k: int
    spans: Sequence[range]
    order: str
    seed: int
    init: str

    def split(self, number: int) -> Split:
        """Return the split of a round, counted from 0."""
        seed = self.seed if len(self.spans) == 1 else seed_of(self.seed, number)
        return split(self.model, self.k, order=self.order, seed=seed, init=INITS[0] if number else self.init)

    @cached_property
    def last(self) -> Split:
        """The split of the last round; its parts merge into the whole."""
        return self.split(len(self.spans) - 1)


def rounds_of(model: Model, k: int, epochs: int, count: int, order: str | None, seed: int, init: str) -> Rounds:
    """Return `count` rounds of `epochs` in all, as even as they go.

    :param order: contiguous when omitted, random in several rounds.
    :raises UsageError: for fewer epochs than rounds, or another order than random in several rounds.
    """
    if not 1 <= count <= epochs:
        raise UsageError(f"{count} rounds aren't possible in {epochs} epochs of the parts; choose 1 to {epochs}.")
    if count > 1 and order not in (None, RANDOM):
        raise UsageError(f"several rounds are divided at random, not {order}; leave out --order.")
    ends = [epochs * number // count for number in range(count + 1)]
    spans = [range(start, stop) for start, stop in pairwise(ends)]
    return Rounds(model, k, spans, order or (RANDOM if count > 1 else ORDERS[0]), seed, init)
