"""A network with fewer of its repeated blocks."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import helper

from onnxpart.analysis.stacks import Stack, stacks
from onnxpart.errors import PartitionError, UsageError
from onnxpart.frontend.load import load
from onnxpart.ir.model import Model
from onnxpart.ir.protos import keep, live, metadata_of, set_repeated
from onnxpart.ir.redraft import redraft
from onnxpart.storage.draft import Draft
from onnxpart.storage.json_text import from_json

METADATA = "onnxpart.depth"
"""Key under which a shallow network says which deep one it comes from."""


@dataclass(frozen=True)
class Depth:
    """How a deep network comes from a shallow one.

    `digest`: of the deep network. `sources`: for each stack and each of its blocks, the number of the block that it
    starts as. The first blocks start as themselves, and the others repeat these.
    """

    digest: str
    sources: tuple[tuple[int, ...], ...]

    def kept(self, stack: int) -> int:
        """How many blocks of a stack the shallow network keeps: the first ones."""
        return max(self.sources[stack]) + 1

    def to_json(self) -> str:
        """The text that a model carries."""
        return json.dumps({"digest": self.digest, "sources": self.sources})

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> Depth | None:
        """What a model says; None if it says nothing that can be read."""
        try:
            found = from_json(metadata_of(proto).get(METADATA, ""))
            result = cls(str(found["digest"]), tuple(tuple(map(int, each)) for each in found["sources"]))
        except (KeyError, TypeError, ValueError):
            return None
        known = all(0 <= source <= block for each in result.sources for block, source in enumerate(each))
        return result if known else None


def shallow(model: Model | onnx.ModelProto | str | os.PathLike[str], blocks: int) -> onnx.ModelProto:
    """The network with fewer of its repeated blocks (see `draft_shallow`).

    :raises ModelError: for an unusable model. :raises PartitionError: when it has no repeated blocks.
    :raises UsageError: when no stack has more than `blocks` blocks, or `blocks` is less than 1.
    """
    return draft_shallow(model if isinstance(model, Model) else load(model), blocks).model()


def draft_shallow(model: Model, blocks: int) -> Draft:
    """The network with the first `blocks` blocks of each longer stack; the other blocks are left out.

    Everything else, and all names, stay. Its metadata say which block of the whole starts as which (see `Depth`).

    :raises PartitionError: when it has no repeated blocks.
    :raises UsageError: when no stack has more than `blocks` blocks, or `blocks` is less than 1.
    """
    found = stacks(model)
    if not found:
        raise PartitionError(
            f"{model.name} has no repeated blocks: no group of operators stands several times in a row, with "
            "parameters "
            "of the same shapes and each reading only the one before; train it at its full depth."
        )
    counts = [len(stack.blocks) for stack in found]
    if not 1 <= blocks < max(counts):
        told = f"stacks of {', '.join(map(str, counts))}" if len(counts) > 1 else f"a stack of {counts[0]}"
        raise UsageError(
            f"{model.name} has {told} blocks; keep at least 1 and fewer than {max(counts)} of them, not {blocks}."
        )
    depth = Depth(model.digest, tuple(tuple(b % min(blocks, count) for b in range(count)) for count in counts))
    return redraft(_without(model, [(stack, depth.kept(i)) for i, stack in enumerate(found)], depth))


def _without(model: Model, kept: Sequence[tuple[Stack, int]], depth: Depth) -> Model:
    """The model with fewer blocks in its stacks; the last block that is kept makes what the stack's last one made."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    left_out = {i for stack, count in kept for block in stack.blocks[count:] for i in block}
    renamed = {stack.exits[count - 1]: stack.exits[-1] for stack, count in kept}
    nodes = [node for i, node in enumerate(graph.node) if i not in left_out]
    for node in nodes:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    nodes, used = live(nodes, model.outputs)
    set_repeated(graph.node, nodes)
    keep(graph.sparse_initializer, lambda tensor: tensor.values.name in used)
    keep(graph.initializer, lambda tensor: tensor.name in used)
    keep(graph.value_info, lambda value: value.name in used and value.name not in renamed)
    helper.set_model_props(proto, metadata_of(proto) | {METADATA: depth.to_json()})
    return replace(model, proto=proto, constants=model.constants & used, parameters=model.parameters & used)
