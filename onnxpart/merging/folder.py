"""The folder of a split: plan, parts, original and whole read back and checked, and the whole filled from parts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import helper

from onnxpart.analysis.walk import analyse
from onnxpart.emission.scale_output import scale_output
from onnxpart.emission.split import ORIGINAL, PLAN, WHOLE, Split, part_file, part_files
from onnxpart.errors import MergeError, UsageError
from onnxpart.frontend.load import load, stored_arrays
from onnxpart.ir.arrays import rows_of
from onnxpart.ir.model import Model
from onnxpart.ir.protos import metadata_of
from onnxpart.ir.redraft import redraft
from onnxpart.ir.trainable import FLOATS
from onnxpart.merging.cross_weights import ZERO, Edges, between, fill_edges
from onnxpart.merging.hierarchy import merge_states_to, merge_to
from onnxpart.merging.merge import Into, Normalize, copies, merge_streams
from onnxpart.merging.model_card import model_card
from onnxpart.merging.net2wider import NOISE, widen_streams
from onnxpart.merging.optimizer_state import (
    OptimizerState,
    found_states,
    merge_states,
    save_state,
    save_trained,
    state_file,
)
from onnxpart.planning.partition import partition_of
from onnxpart.planning.plan import METADATA, METADATA_PART, Plan, copy_name
from onnxpart.storage.atomic import clear, replacing_folder, write_bytes
from onnxpart.storage.draft import Draft, empty, fill
from onnxpart.storage.outputs import MARK, check_file, check_folder, is_own
from onnxpart.storage.rows import Cast, Rows, Stream
from onnxpart.storage.safetensors import save_arrays

_FLOAT_TYPES = frozenset(np.dtype(helper.tensor_dtype_to_np_dtype(kind)) for kind in FLOATS)
CARD = "README.md"
"""The model card beside a merged model, as Hugging Face names it."""
_NAMED = 8
"""At most this many initializers are named in a warning."""


@dataclass(frozen=True)
class Merged:
    """Names of merged initializers: all, those that `kept` their cross weights, and `others`, drawn with `spread`.

    `card` is the model card, if one was written.
    """

    names: list[str]
    kept: list[str]
    others: list[str]
    spread: float
    card: Path | None = None


def read_plan(folder: Path) -> Plan:
    """The plan of a folder that `split` or `merge --to` wrote.

    :raises MergeError: when there is none, or it can't be read.
    """
    path, part = folder / PLAN, folder / part_file(0)
    for place in (folder.parent, folder):
        clear(place)  # files that a killed command had ready or set aside take their places
    if path.is_file():
        return Plan.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))
    props = metadata_of(load(part).proto) if part.is_file() else {}
    if METADATA not in props:
        raise MergeError(f"{folder} holds no plan; name a folder that `onnxpart split` wrote.")
    return Plan.from_json(props[METADATA], str(part))


def read_parts(plan: Plan, files: Sequence[Path]) -> list[Model]:
    """The parts of a plan from files.

    :param plan: the plan that the parts were made by.
    :param files: one per part; in any order, if they say which part they are.
    :returns: the parts, in the plan's order.
    :raises MergeError: when a part is missing, given twice, or of another split.
    """
    _check_count(plan, files)
    found: dict[int, Model] = {}
    for i, path in enumerate(files):
        model = _of_plan(plan, path)
        text = metadata_of(model.proto).get(METADATA_PART, str(i))
        if not text.isdecimal() or int(text) >= plan.k:
            raise MergeError(f"{path} says that it is part {text} of {plan.k}; give the parts of one split.")
        part = int(text)
        if part in found:
            raise MergeError(f"{path} is part {part}, which was given already; name each part once.")
        found[part] = model
    return [found[p] for p in sorted(found)]


def _of_plan(plan: Plan, path: Path) -> Model:
    """A part of a plan, from its file.

    :raises MergeError: when it says that it is a part of another split.
    """
    model = load(path)
    if not _carries(model, plan):
        raise MergeError(f"{path} is a part of another split than the plan's; give the parts of one split.")
    return model


def _carries(model: Model, plan: Plan) -> bool:
    """Whether a model carries this plan, or none; the plan's own text isn't parsed, since that takes long.

    :raises MergeError: when it carries something else in its place.
    """
    text = metadata_of(model.proto).get(METADATA)
    return text is None or text == plan.to_json() or Plan.from_json(text, model.name) == plan


def _check_count(plan: Plan, files: Sequence[Path]) -> None:
    """Check that there is one file per part.

    :raises MergeError: when there are more or fewer.
    """
    if len(files) != plan.k:
        raise MergeError(f"the plan has {plan.k} parts, but {len(files)} files were given; name one file per part.")


def original(folder: Path, plan: Plan) -> Model:
    """The network that the plan was made for.

    :raises MergeError: when the folder's network isn't the plan's.
    """
    path = folder / ORIGINAL
    model = load(path if path.exists() else folder / WHOLE)
    if model.digest != plan.digest:
        raise MergeError(f"{model.name} isn't the network that the plan was made for; split the model again.")
    return model


def read_whole(folder: Path, plan: Plan) -> Model:
    """The duplicated whole that the plan's parts merge into.

    :raises MergeError: when the folder's whole is of another network or another split.
    """
    model = load(folder / WHOLE)
    if not _carries(model, plan):
        raise MergeError(f"{model.name} belongs to another split than the plan; split the model again.")
    for initializer in plan.initializers:
        name = initializer.name
        if not initializer.constant and name not in model.initializers and copy_name(name, 0) not in model.initializers:
            raise MergeError(f"{model.name} has no initializer {name!r}; it belongs to another split than the plan.")
    return model


def in_types_of(network: Model, parts: Sequence[Mapping[str, Rows]]) -> list[dict[str, Rows]]:
    """The parts' arrays in the types of the network's initializers; floats are converted, with a warning.

    :raises MergeError: when one holds no floats where the network has some, or the other way round.
    """
    result: list[dict[str, Rows]] = []
    for p, part in enumerate(parts):
        mine, converted = dict(part), []
        for name, array in part.items():
            tensor = network.initializers.get(name) or network.initializers.get(copy_name(name, 0))
            wanted = array.dtype if tensor is None else np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
            if array.dtype == wanted:
                continue
            if not {array.dtype, wanted} <= _FLOAT_TYPES:
                raise MergeError(
                    f"part {p}: {name!r} is of type {array.dtype}, the network's of {wanted}; save it as {wanted}."
                )
            converted.append(f"{name!r} from {array.dtype} to {wanted}")
            mine[name] = Cast(array, wanted)
        if converted:
            more = f" and {len(converted) - _NAMED} others" if len(converted) > _NAMED else ""
            warnings.warn(f"part {p}: converted {', '.join(converted[:_NAMED])}{more}", stacklevel=2)
        result.append(mine)
    return result


def part_arrays(folder: Path, plan: Plan, files: Sequence[Path] | None = None) -> list[dict[str, Rows]]:
    """The parts' initializers in the plan's order.

    :param folder: the folder of the split.
    :param plan: its plan.
    :param files: one per part: ONNX (in any order, if they say which part they are), or safetensors of the parts'
        weights (in order); the folder's parts when omitted.
    :returns: for each part, initializer name -> array; an external one is mapped, not read.
    :raises MergeError: when a part is missing, given twice, or of another split.
    """
    if files is None:
        files = part_files(folder, plan.k)
    weights = [path for path in files if path.suffix == ".safetensors"]
    if not weights:
        return [stored_arrays(model) for model in read_parts(plan, files)]
    if len(weights) < len(files):
        raise MergeError(f"{weights[0]} is safetensors and others are ONNX; give all parts in the same form.")
    _check_count(plan, files)
    twice = next((path for i, path in enumerate(files) if path.resolve() in [f.resolve() for f in files[:i]]), None)
    if twice is not None:
        raise MergeError(f"{twice} was given twice; name each part once.")
    parts = [stored_arrays(path) for path in files]
    for path, part in zip(files, parts, strict=True):
        missing = next((i.name for i in plan.initializers if not i.constant and not copies(part, i.name)), None)
        if missing is not None:
            raise MergeError(f"{path} has no weight {missing!r}; save all of the part's weights.")
    constants = {i.name for i in plan.initializers if i.constant}
    return [{name: array for name, array in part.items() if name not in constants} for part in parts]


def merge_folder(
    folder: Path,
    out: Path | None = None,
    *,
    parts: Sequence[Path] | None = None,
    into: Into = "duplicated",
    normalize: Normalize = "weights",
    edges: Edges = ZERO,
    initializers: Path | None = None,
    force: bool = False,
) -> Merged:
    """Merge the parts of a folder into a file (see `merge.merge`); external data go from file to file, row by row.

    The states that training left beside the parts are merged, too, and left beside the file (see `optimizer_state`). A
    model that transformers saved gets a model card there (see `model_card`).

    :param folder: the folder of the split.
    :param out: the model to write; none when omitted.
    :param parts: files of the parts (see `part_arrays`).
    :param into: the duplicated whole, or the original graph.
    :param normalize: what is divided by K: the weights of the output, or the output itself.
    :param edges: how cross weights start; those of parameters that the network says are frozen are kept.
    :param initializers: a safetensors file to write the merged initializers to.
    :param force: replace files that exist.
    :returns: the names of the merged initializers, and what became of their cross weights.
    :raises MergeError: when the parts don't fit the plan, or the output can't be scaled (see `scale_output`).
    :raises ModelError: when a file can't be read or written.
    """
    plan = read_plan(folder)
    read = _files_read(folder, plan, parts)
    if out is not None:
        check_model(out, force, read)
    if initializers is not None:
        check_file(initializers, force, read)
    if out is not None and initializers is not None and out.resolve() == initializers.resolve():
        raise UsageError(f"{out} can't hold both the model and its initializers; name two files.")
    edges.check(plan)
    base = original(folder, plan) if into == "original" else read_whole(folder, plan)
    arrays = in_types_of(base, part_arrays(folder, plan, parts))
    merged = merge_streams(plan, arrays, into=into, normalize=normalize)
    edges = edges.keeping(base.frozen)
    network = {name: rows_of(base, name) for name in between(plan) if name in base.initializers}
    merged = fill_edges(plan, merged, network, edges)
    whole = filled(base, merged)
    if normalize == "output":
        whole = Draft(scale_output(whole.proto, plan), whole.streams)
    if initializers is not None:
        save_arrays(merged, initializers, MARK)
    card = None
    if out is not None:
        states = _states(folder, plan, parts)
        state = merge_states(plan, states, into=into, normalize=normalize) if states else None
        save_filled(whole, state, out)
        card = _save_card(model_card(out.name, base, plan, into, normalize, edges), out.with_name(CARD), force)
    kept, others = ([name for name in network if edges.keeps(name) == keeps] for keeps in (True, False))
    return Merged(sorted(merged), kept, others, edges.spread, card)


def _save_card(text: str | None, path: Path, force: bool) -> Path | None:
    """Write a model card, if there is one. A file in its place stays, unless `force` is given and onnxpart wrote it.

    :returns: the card; None if none was written.
    """
    if text is None:
        return None
    if os.path.lexists(path) and not (force and is_own(path)):
        warnings.warn(f"{path} exists already and stays; the merged model gets no card of its own.", stacklevel=2)
        return None
    write_bytes(path, text.encode())
    return path


def merge_level(folder: Path, out: Path, k: int, *, parts: Sequence[Path] | None = None, force: bool = False) -> Split:
    """Merge the parts of a folder to `k` larger ones (see `hierarchy.merge_to`), into a folder like that of a split.

    :param folder: the folder of the split.
    :param out: the folder to write.
    :param k: the number of larger parts.
    :param parts: files of the parts (see `part_arrays`).
    :param force: replace a folder that exists.
    :returns: the split into larger parts, as written.
    :raises UsageError: when `k` doesn't fit.
    :raises MergeError: when the parts don't fit the plan.
    :raises ModelError: when a file can't be read or written.
    """
    plan = read_plan(folder)
    check_folder(out, force, [folder, *_files_read(folder, plan, parts)])
    network = original(folder, plan)
    split = Split(partition_of(analyse(network), plan), (), redraft(read_whole(folder, plan)))
    merged = merge_to(split, in_types_of(network, part_arrays(folder, plan, parts)), k)
    states = _states(folder, plan, parts)
    with replacing_folder(out) as fresh:
        merged.write(fresh)
        for p, state in enumerate(merge_states_to(plan, merged.plan, states) if states else ()):
            save_state(state, state_file(fresh / part_file(p)))
    return merged


def _states(folder: Path, plan: Plan, files: Sequence[Path] | None) -> list[OptimizerState]:
    """The states that training left beside the parts, in the plan's order; none unless all have one, of one kind."""
    files = part_files(folder, plan.k) if files is None else files
    if len({state.kind for state in found_states(files)}) != 1:
        return []
    return found_states([Path(part.name) for part in read_parts(plan, files)])


def widen_part(
    part: Path,
    out: Path,
    *,
    folder: Path | None = None,
    into: Into = "duplicated",
    noise: float = NOISE,
    seed: int = 0,
    force: bool = False,
) -> list[str]:
    """Fill the whole from one trained part into a file (see `net2wider.widen`); external data go from file to file.

    :param part: an ONNX file, or a safetensors file of its weights.
    :param out: the model to write.
    :param folder: the folder of its split; the part's own folder when omitted.
    :param into: the duplicated whole, or the original graph.
    :param noise: on the copies (see `net2wider.widen`).
    :param seed: of the noise.
    :param force: replace a file that exists.
    :returns: names of the initializers.
    :raises MergeError: when the part isn't the split's, or the parts aren't alike.
    :raises ModelError: when a file can't be read or written.
    """
    folder = part.parent if folder is None else folder
    plan = read_plan(folder)
    check_model(out, force, _files_read(folder, plan, [part]))
    arrays = stored_arrays(part if part.suffix == ".safetensors" else _of_plan(plan, part))
    network = original(folder, plan)
    (arrays,) = in_types_of(network, [arrays])
    widened = widen_streams(analyse(network), plan, arrays, into=into, noise=noise, seed=seed)
    save_filled(filled(network if into == "original" else read_whole(folder, plan), widened), None, out)
    return sorted(widened)


def _files_read(folder: Path, plan: Plan, parts: Sequence[Path] | None) -> list[Path]:
    """Files of a split that are read, so they mustn't be replaced: its folder's, or the given files of the parts."""
    parts = part_files(folder, plan.k) if parts is None else parts
    return [folder / PLAN, folder / WHOLE, folder / ORIGINAL, *parts, *(state_file(part) for part in parts)]


def check_model(path: Path, force: bool, read: list[Path]) -> None:
    """Refuse to write a model and its optimizer's state over something that mustn't be replaced."""
    check_file(path, force, read)
    check_file(state_file(path), True, read)


def save_filled(draft: Draft, state: OptimizerState | None, path: Path) -> None:
    """Write a model that says where it is from, and its optimizer's state, both at once."""
    found = metadata_of(draft.proto)
    if METADATA not in found:
        helper.set_model_props(draft.proto, found | MARK)
    save_trained([path], [(draft, state)])


def filled(model: Model, merged: Mapping[str, Stream]) -> Draft:
    """The model with the merged initializers; external ones stay streams.

    :param model: the duplicated whole, or the original.
    :param merged: initializer name -> array in the model's shape.
    :raises MergeError: when the model isn't the one that they belong to.
    """
    for name, tensor in model.initializers.items():
        if name in merged and tuple(tensor.dims) != tuple(merged[name].shape):
            raise MergeError(
                f"{model.name}: {name!r} has shape {tuple(tensor.dims)}, merged it has {tuple(merged[name].shape)}; "
                "the model belongs to another split."
            )
    draft = redraft(model)
    streams = dict(draft.streams)
    for tensor in draft.proto.graph.initializer:
        if tensor.name in streams and tensor.name in merged:
            streams[tensor.name] = merged[tensor.name]
            tensor.CopyFrom(empty(tensor.name, merged[tensor.name], tensor.doc_string))
        elif tensor.name in merged:
            fill(tensor, merged[tensor.name].array())
    return Draft(draft.proto, streams)
