"""The weights by whose zeros a block of a stack gives what it reads: a residual block that adds nothing."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from onnxpart.analysis.op import qualified
from onnxpart.analysis.rules.table import TABLE
from onnxpart.analysis.stacks import Stack
from onnxpart.ir.model import Model
from onnxpart.ir.protos import is_onnx


def zeros(model: Model, stack: Stack, block: int) -> frozenset[str] | None:
    """The initializers by whose zeros a block gives what it reads: the last ones of each branch beside the stream.

    :param block: the number of one that isn't the first.
    :returns: their names; None where no zeros do that, as where a norm stands on the stream.
    """
    return _Block(model, stack, block).passing()


class _Block:
    def __init__(self, model: Model, stack: Stack, block: int) -> None:
        self.model, self.entry, self.exit = model, stack.exits[block - 1], stack.exits[block]
        nodes = model.proto.graph.node
        self.made: dict[str, NodeProto] = {name: nodes[i] for i in stack.blocks[block] for name in nodes[i].output}

    def passing(self) -> frozenset[str] | None:
        """The weights by whose zeros the block gives what it reads."""
        last = self.made[self.exit]
        # what the block reads was made by the same operator, in the block before, and it leaves that as it is
        return self._passing(last.input[0] if is_onnx(last, "Clip", "Relu") else self.exit)

    def _passing(self, name: str) -> frozenset[str] | None:
        """The weights by whose zeros a value is what the block reads."""
        node = self.made.get(name)
        if name == self.entry:
            return frozenset()
        if node is None or not is_onnx(node, "Add", "Identity", "Sum"):
            return None
        for i, stream in enumerate(node.input):
            passing = self._passing(stream)
            if passing is not None:
                silent = self._all_silent([*node.input[:i], *node.input[i + 1 :]])
                return None if silent is None else passing | silent
        return None

    def _silent(self, name: str) -> frozenset[str] | None:
        """The weights by whose zeros a value is zero, the last ones that do so."""
        if name in self.model.initializers:
            return frozenset([name]) if self.model.trainable(name) and name not in self.model.frozen else None
        node = self.made.get(name)
        rule = None if node is None else TABLE.get(qualified(node.domain, node.op_type))
        if node is None or rule is None:
            return None
        inputs = [operand for operand in node.input if operand]
        match rule.zero:
            case "data":
                return self._silent(inputs[0])
            case "sum":
                return self._all_silent(inputs)
            case "parameters":
                return self._all_silent(inputs[1:3])
            case "scale":
                factors = sorted(inputs[:2], key=self._is_weight, reverse=True)
                silent = next((found for found in map(self._silent, factors) if found is not None), None)
                bias = self._all_silent(inputs[2:])
                return None if silent is None or bias is None else silent | bias
        return None

    def _all_silent(self, names: Sequence[str]) -> frozenset[str] | None:
        """The weights by whose zeros several values are zero."""
        found = [silent for silent in map(self._silent, names) if silent is not None]
        return frozenset().union(*found) if len(found) == len(names) else None

    def _is_weight(self, name: str) -> bool:
        """Whether a value is made of initializers alone."""
        return name in self.model.initializers or (
            name in self.made and all(self._is_weight(operand) for operand in self.made[name].input if operand)
        )
