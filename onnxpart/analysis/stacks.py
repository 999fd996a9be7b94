"""Blocks of a graph that are alike and follow one another: what the depth of a network is made of."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from onnxpart.analysis.repeats import Block, fold
from onnxpart.ir.arrays import array_of
from onnxpart.ir.infer import infer
from onnxpart.ir.model import Model
from onnxpart.ir.protos import captured, graphs_of, normal_domain


@dataclass(frozen=True)
class Stack:
    """Blocks that follow one another, each reading the one before, or what all of them read.

    They are alike in operators, attributes, constants, shapes of parameters and wiring. `blocks`: the nodes of each
    block, by their index in the graph, in the same order in all. `entry`: the value that the first block reads and all
    others have from the one before. `exits`: what each block gives, of the entry's shape and type. `initializers`: for
    each block those that it reads and that training changes, once for each time, in the same order in all.
    """

    blocks: tuple[tuple[int, ...], ...]
    entry: str
    exits: tuple[str, ...]
    initializers: tuple[tuple[str, ...], ...]


def stacks(model: Model) -> tuple[Stack, ...]:
    """Find the blocks that follow one another, as far as they have parameters.

    Nodes are looked at in the file's order, and in one that depends on the graph alone; what finds more blocks counts.
    A block is left only by what the next one reads: where a hidden value of it is read elsewhere, or an output of the
    graph, it can't be left out, and is in no stack. Where blocks may begin at several places, they do where the value
    that goes from one to the next is read most often: the stream, and not what a branch makes of it.

    :returns: the stacks in the order of the graph; no node is in two of them.
    :raises ModelError: when the shapes contradict each other.
    """
    finder = _Finder(model)
    found = [finder.stacks(order) for order in (range(len(finder.nodes)), _depth_first(finder))]
    return max(found, key=lambda each: sum(len(stack.blocks) for stack in each))


class _Finder:
    """What is known of a model's nodes, whatever order they are looked at in."""

    def __init__(self, model: Model) -> None:
        self.model, self.nodes = model, model.proto.graph.node
        self.shapes, self.inputs = infer(model), set(model.inputs)
        self.made = {n: (i, slot) for i, node in enumerate(self.nodes) for slot, n in enumerate(node.output) if n}
        self.reads = [[n for n in (*node.input, *captured(node)) if n in self.made] for node in self.nodes]
        self.readers: dict[str, set[int]] = {}
        for i, names in enumerate(self.reads):
            for name in names:
                self.readers.setdefault(name, set()).add(i)
        self.constants: dict[str, Hashable] = {}
        self.signatures = [self._signature(i) for i in range(len(self.nodes))]

    def stacks(self, order: Sequence[int]) -> tuple[Stack, ...]:
        """The stacks among the nodes in this order, in which each follows what it reads."""
        cards = [[name] for name in self.model.inputs] + [list(self.nodes[i].output) for i in order]
        card = {name: number for number, names in enumerate(cards) for name in names if name}
        given = len(cards) - len(order)
        values = ((*self.nodes[i].input, *captured(self.nodes[i])) for i in order)
        reads = [*[()] * given, *(tuple(card[name] for name in names if name in card) for names in values)]
        signatures = [*self.model.inputs, *(self.signatures[i] for i in order)]
        found, taken = list[Stack](), set[int]()
        for item in fold(signatures, reads):
            if isinstance(item, Block):
                item = replace(item, start=item.start - given)
                candidates = [self._stack(order, item, shift) for shift in range(item.period)]
                free = [c for c in candidates if c is not None and taken.isdisjoint(chain(*c.blocks))]
                if free:
                    found.append(max(free, key=self._worth))
                    taken.update(*found[-1].blocks)
        return tuple(found)

    def _signature(self, i: int) -> Hashable:
        """What two nodes have in common that may stand for each other."""
        node = self.nodes[i]
        if graphs_of(node):
            return i
        attributes = sorted((a.name, a.SerializeToString(deterministic=True)) for a in node.attribute)
        operands = tuple(self._operand(name) for name in node.input)
        outputs = tuple(bool(name) and self._kind(name) for name in node.output)
        return normal_domain(node.domain), node.op_type, tuple(attributes), operands, outputs

    def _operand(self, name: str) -> Hashable:
        """What an operand is: a node's output of this number (0: an input, too), a parameter's shape, or a constant."""
        if name not in self.model.initializers:
            return self.made[name][1] if name in self.made else 0 if name else None
        tensor = self.model.initializers[name]
        if self.model.trainable(name):
            return "parameter", tensor.data_type, tuple(tensor.dims)
        if name not in self.constants:
            array = array_of(self.model, name)
            text = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
            self.constants[name] = tensor.data_type, tuple(tensor.dims), hashlib.sha256(text).digest()
        return self.constants[name]

    def _kind(self, name: str) -> Hashable:
        """Shape of a value at both sizes of the symbols, and its type."""
        other = self.shapes.other.shape.get(name) if self.shapes.other is not None else None
        return self.shapes.shape.get(name), other, self.shapes.dtype.get(name)

    def _worth(self, stack: Stack) -> tuple[int, int]:
        """What tells which of several stacks of the same nodes is taken: the blocks, and who reads their entries."""
        return len(stack.blocks), len(self.readers[stack.exits[0]])

    def _stack(self, order: Sequence[int], found: Block, shift: int) -> Stack | None:
        """The stack of what repeats, begun some nodes later, where its blocks can be left out and put in; else None."""
        starts = range(found.start + shift, found.start + found.period * found.count + shift, found.period)
        blocks = [tuple(order[start : start + found.period]) for start in starts]
        if len({tuple(self.signatures[i] for i in block) for block in blocks}) > 1:
            blocks.pop()  # what follows isn't the rest of a block
        passed = self._passed(blocks)
        if passed is None:
            return None
        i, slot = self.made[passed]
        position = blocks[0].index(i)
        while (earlier := self._before(blocks, position, slot)) is not None:
            blocks.insert(0, earlier)
        exits = [str(self.nodes[block[position]].output[slot]) for block in blocks]
        entries = [self._entry(*each) for each in zip(blocks, blocks[1:], exits, strict=False)]
        if entries and not self._fits(entries[0], exits[0]):
            del blocks[0], exits[0], entries[0]
        if not entries or entries[0] is None or entries[1:] != exits[: len(entries) - 1]:
            return None
        stack = Stack(tuple(blocks), entries[0], tuple(exits), tuple(map(self._trained, blocks)))
        return stack if self._closed(stack) else None

    def _passed(self, blocks: Sequence[Sequence[int]]) -> str | None:
        """What the second block reads of the first, where that is one value."""
        if len(blocks) < 2:
            return None
        first = set(blocks[0])
        passed = {name for i in blocks[1] for name in self.reads[i] if self.made[name][0] in first}
        return passed.pop() if len(passed) == 1 else None

    def _entry(self, one: Sequence[int], other: Sequence[int], passed: str) -> str | None:
        """What a block reads where the one after it reads what it passes on; None unless they are wired alike.

        Each of its nodes reads the same of its own block as the other's does, and the same values from outside.
        """
        places = ({name: (position, slot) for position, i in enumerate(block) for slot, name
                   in enumerate(self.nodes[i].output) if name} for block in (one, other))  # fmt: skip
        own, others = places
        outside = self.made.keys() | self.inputs
        entries = set[str]()
        for i, j in zip(one, other, strict=True):
            for mine, its in zip(self.nodes[i].input, self.nodes[j].input, strict=True):
                if its == passed:
                    entries.add(mine)
                elif own.get(mine) != others.get(its) or (its in outside and its not in others and mine != its):
                    return None
        entry = entries.pop() if len(entries) == 1 else None
        return entry if entry not in own else None

    def _before(self, blocks: Sequence[Sequence[int]], position: int, slot: int) -> tuple[int, ...] | None:
        """The block before the first, found from what it gives backwards; None where there is none.

        Its nodes needn't follow one another: what other blocks read as well may be computed between them.
        """
        first, second = blocks[:2]
        exit_ = self.nodes[first[position]].output[slot]
        entry = self._entry(first, second, exit_)
        if entry not in self.made or self.made[entry][1] != slot:
            return None
        own, found = set(first), {first[position]: self.made[entry][0]}
        waiting = [first[position]]
        while waiting:
            j = waiting.pop()
            i = found[j]
            if self.signatures[i] != self.signatures[j] or any(i in block for block in blocks):
                return None
            for mine, its in zip(self.nodes[i].input, self.nodes[j].input, strict=True):
                if its in self.made and self.made[its][0] in own:
                    if mine not in self.made:
                        return None
                    node, like = self.made[mine][0], self.made[its][0]
                    if like not in found:
                        waiting.append(like)
                    if found.setdefault(like, node) != node:
                        return None
        block = tuple(found.get(j, -1) for j in first)
        return block if -1 not in block and len(set(block)) == len(block) else None

    def _fits(self, entry: str | None, passed: str) -> bool:
        """Whether the first block reads a value of the same shape, which is known, and type as the others do."""
        return entry is not None and entry in self.shapes.shape and self._kind(entry) == self._kind(passed)

    def _trained(self, block: Sequence[int]) -> tuple[str, ...]:
        """The initializers that a block reads and that training changes."""
        read = (name for i in block for name in self.nodes[i].input if name in self.model.initializers)
        return tuple(filter(self.model.trainable, read))

    def _closed(self, stack: Stack) -> bool:
        """Whether blocks have parameters, and nothing but the next block reads anything of one that isn't the last."""
        if not stack.initializers[0]:
            return False
        outputs = set(self.model.outputs)
        for number, block in enumerate(stack.blocks):
            inside = set(block)
            last = number + 1 == len(stack.blocks)
            for name in (name for i in block for name in self.nodes[i].output if name):
                left = self.readers.get(name, set()) - inside
                if name == stack.exits[number]:
                    if last:
                        continue
                    left -= set(stack.blocks[number + 1])
                if left or name in outputs:
                    return False
        return True


def _depth_first(finder: _Finder) -> list[int]:
    """The nodes in an order that depends on the graph alone: what a node reads is before it, the deepest first."""
    depth = list[int]()
    for names in finder.reads:
        depth.append(1 + max((depth[finder.made[name][0]] for name in names), default=0))
    read = Counter(name for names in finder.reads for name in names)
    ends = [i for i, node in enumerate(finder.nodes) if not any(name in read for name in node.output)]
    order, waiting, done = list[int](), [(i, False) for i in reversed(ends)], set[int]()
    while waiting:
        i, ready = waiting.pop()
        if i in done:
            continue
        if ready:
            done.add(i)
            order.append(i)
            continue
        waiting.append((i, True))
        before = (finder.made[name][0] for name in finder.reads[i])
        waiting += [(j, False) for j in sorted(before, key=lambda j: depth[j])]
    return order
