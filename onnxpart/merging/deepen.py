"""Trained blocks of a shallow network stacked into the deep one: gradual stacking (Gong et al., ICML 2019)."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from onnxpart.analysis.stacks import stacks
from onnxpart.analysis.zeros import zeros
from onnxpart.emission.shallow import Depth
from onnxpart.errors import MergeError
from onnxpart.frontend.load import load
from onnxpart.ir.arrays import rows_of
from onnxpart.ir.model import Model
from onnxpart.ir.protos import captured, metadata_of
from onnxpart.merging.folder import check_model, filled, save_filled
from onnxpart.merging.optimizer_state import SQUARED, OptimizerState, found_states, state_file
from onnxpart.planning.plan import METADATA, METADATA_PART, Plan
from onnxpart.storage.draft import Draft
from onnxpart.storage.rows import Array, Rows, Stream, stream

New = Literal["copies", "zero"]
"""How new blocks start: as copies of trained ones, or as copies whose last weights are zero, which add nothing."""


@dataclass(frozen=True)
class Growth:
    """What each initializer of a deep network starts as.

    `sources`: each initializer of a new block -> the initializer of the shallow network that it copies; all others have
    their own. `zeros`: initializers of new blocks that start at zero instead. `new`: how new blocks start.
    """

    sources: Mapping[str, str]
    zeros: frozenset[str]
    new: New


def growth(
    network: Model | onnx.ModelProto | str | os.PathLike[str],
    shallow: Model | onnx.ModelProto | str | os.PathLike[str],
    new: New = "copies",
) -> Growth:
    """What each initializer of a deep network starts as.

    :param shallow: what `shallow` made of `network`, trained or not, or its parts merged into it.
    :param new: how new blocks start (see `New`).
    :raises MergeError: when `shallow` is another network; when blocks share parameters, so that they can't copy
        different ones, or be zero in only one; when no zeros make a block add nothing.
    """
    model, small = (source if isinstance(source, Model) else load(source) for source in (network, shallow))
    found = stacks(model)
    depth = _depth(model, small, [len(stack.blocks) for stack in found])
    copied, zero, new_nodes = dict[str, str](), set[str](), set[int]()
    for number, (stack, sources) in enumerate(zip(found, depth.sources, strict=True)):
        for block in range(depth.kept(number), len(sources)):
            new_nodes.update(stack.blocks[block])
            names = zip(stack.initializers[block], stack.initializers[sources[block]], strict=True)
            _copy(model, dict(names), copied)
            silent = zeros(model, stack, block) if new == "zero" else frozenset()
            if silent is None:
                raise MergeError(
                    f"{model.name}: block {block} can't start as one that adds nothing, as no zeros among its weights "
                    f"make {stack.exits[block]!r} equal to {stack.exits[block - 1]!r}; start it as a copy."
                )
            zero |= silent
    elsewhere = (node for i, node in enumerate(model.proto.graph.node) if i not in new_nodes)
    others = {name for node in elsewhere for name in (*node.input, *captured(node))}
    _copy(model, {name: name for name in others & copied.keys()}, copied)
    shared = next((name for name in sorted(zero) if copied[name] == name), None)
    if shared is not None:
        raise MergeError(
            f"{model.name}: {shared!r} is shared with a block that is trained and can't be zero in new ones alone; "
            "start them as copies."
        )
    return Growth({name: old for name, old in copied.items() if name != old}, frozenset(zero), new)


def _depth(model: Model, small: Model, counts: Sequence[int]) -> Depth:
    """What a shallow network says of the deep one; the deep one's stacks have `counts` blocks.

    :raises MergeError: when it says nothing, is of another network, or was merged into another graph.
    """
    depth = Depth.of(small.proto)
    if depth is None:
        raise MergeError(f"{small.name} doesn't say which network it was made from; give a file that `shallow` wrote.")
    if depth.digest != model.digest or list(map(len, depth.sources)) != counts:
        raise MergeError(f"{model.name} isn't the network that {small.name} was made from; give that one.")
    own, given = (metadata_of(each.proto) for each in (small, model))
    apart = METADATA in own and own[METADATA] != given.get(METADATA)
    if apart and (METADATA_PART in own or not Plan.from_json(own[METADATA], small.name).same_graph):
        raise MergeError(
            f"{small.name} is a part, or the whole with mixes once per part, and {model.name} is neither; merge parts "
            "with --into original."
        )
    return depth


def _copy(model: Model, names: Mapping[str, str], copied: dict[str, str]) -> None:
    """Add the sources of some initializers to the known ones.

    :raises MergeError: when one would be a copy of two.
    """
    for name, old in names.items():
        if copied.setdefault(name, old) != old:
            raise MergeError(
                f"{model.name}: {name!r} is shared and would be a copy of {copied[name]!r} and of {old!r}; "
                "keep another number of blocks, or share it between all."
            )


def deepen(grown: Growth, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Fill a deep network from a shallow one.

    :param grown: see `growth`.
    :param arrays: the shallow network's: initializer name -> array.
    :returns: initializer name -> array of the deep network, for all initializers that the shallow one has or that new
        blocks copy.
    :raises MergeError: when an array that new blocks copy is missing.
    """
    return {name: rows.array() for name, rows in deepen_streams(grown, arrays).items()}


def deepen_streams(grown: Growth, arrays: Mapping[str, Rows]) -> dict[str, Stream]:
    """Fill a deep network a few rows at a time (see `deepen`).

    :raises MergeError: when an array that new blocks copy is missing.
    """
    missing = next((old for old in grown.sources.values() if old not in arrays), None)
    if missing is not None:
        raise MergeError(f"the shallow network has no initializer {missing!r}; give all of its arrays.")
    result = {name: stream(rows) for name, rows in arrays.items()}
    result |= {name: stream(arrays[old]) for name, old in grown.sources.items()}
    return result | {name: _zero(result[name]) for name in grown.zeros}


def _zero(like: Stream) -> Stream:
    def chunks(size: int) -> Iterator[Array]:
        """Zeros, a few rows at a time."""
        for piece in like.chunks(size):
            yield np.zeros_like(piece)

    return Stream(like.shape, like.dtype, chunks)


def deepen_state(grown: Growth, state: OptimizerState, *, squared: Collection[str] = ()) -> OptimizerState:
    """The optimizer's state of a shallow network -> that of the deep one.

    Copies have the slots of their originals. If new blocks add nothing at first, their momenta are zero, but their
    second moments stay: zeros would make the first steps too long.

    :param state: of the optimizer that trained the shallow network.
    :param squared: slots that hold second moments besides `SQUARED`.
    """
    kept = {*SQUARED, *squared}
    slots = {name: dict(arrays) for name, arrays in state.slots.items()}
    for name, old in grown.sources.items():
        if old in state.slots:
            slots[name] = {
                slot: np.zeros_like(array) if grown.new == "zero" and slot not in kept else array.copy()
                for slot, array in state.slots[old].items()
            }
    return OptimizerState(state.kind, state.step, slots)


def deepened(network: Model, shallow: Model, grown: Growth) -> Draft:
    """The deep network with the weights of the shallow one.

    :param grown: see `growth`.
    :raises MergeError: when the shallow network lacks some of its weights, or has them in other shapes.
    """
    own = [name for name in network.initializers if name not in network.constants and network.is_float(name)]
    lacking = next((n for n in own if n not in {*shallow.initializers, *grown.sources} and network.trainable(n)), None)
    if lacking is not None:
        raise MergeError(f"{shallow.name} has no initializer {lacking!r}; give all weights that `shallow` kept.")
    held = {*own, *grown.sources.values()} & shallow.initializers.keys()
    return filled(network, deepen_streams(grown, {name: rows_of(shallow, name) for name in held}))


def deepen_file(
    shallow: Path,
    network: Model,
    out: Path,
    *,
    new: New = "copies",
    force: bool = False,
    check: Callable[[Model, Model, Draft], None] | None = None,
) -> Growth:
    """Fill a deep network from a shallow one into a file; external data go from file to file, row by row.

    The state that training left beside the shallow network goes with it (see `deepen_state`).

    :param shallow: a file that `shallow` wrote, trained since or merged from its parts.
    :param network: the deep network that the shallow one was made from.
    :param out: the model to write.
    :param new: how new blocks start (see `New`).
    :param force: replace a file that exists.
    :param check: called before the file is written, with the deep network as it was, the shallow one, and the deep one
        as it will be. Nothing is written if it raises an error.
    :raises MergeError: when the two don't belong together, or new blocks can't start so (see `growth`).
    :raises ModelError: when a file can't be read or written.
    """
    check_model(out, force, [shallow, state_file(shallow), *network.files])
    small = load(shallow)
    grown = growth(network, small, new)
    draft = deepened(network, small, grown)
    if check is not None:
        check(network, small, draft)
    states = found_states([shallow])
    save_filled(draft, deepen_state(grown, states[0]) if states else None, out)
    return grown
