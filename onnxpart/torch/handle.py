"""A PyTorch module -> K modules to train, and their trained weights back into the module, by its own names."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from onnxpart.emission.split import Split, split
from onnxpart.errors import MergeError, OnnxpartError, UsageError
from onnxpart.frontend.extract import cut
from onnxpart.frontend.load import load
from onnxpart.inspection.explain import fewer_outputs
from onnxpart.inspection.obstacles import obstacles
from onnxpart.ir.arrays import array_of
from onnxpart.ir.model import Model
from onnxpart.merging.cross_weights import Edges, between, fill_edges
from onnxpart.merging.folder import in_types_of
from onnxpart.merging.hierarchy import finest, merge_states_to_original, merge_to, merge_to_original, within
from onnxpart.merging.merge import merge, unmerge
from onnxpart.merging.optimizer_state import merge_states
from onnxpart.planning.plan import Plan, copy_name, from_ranges
from onnxpart.storage.draft import Draft
from onnxpart.storage.rows import Rows, stream
from onnxpart.storage.safetensors import read_shards
from onnxpart.torch.exporter.export import Dynamic, Inputs, exported, input_names, returned
from onnxpart.torch.exporter.module_state import uncompiled, values_of
from onnxpart.torch.fused_parts import FusedParts
from onnxpart.torch.importer.import_onnx import imported
from onnxpart.torch.importer.module import ImportedModule, load_weights, parameters, tensor_name
from onnxpart.torch.interface import Forward, Interface, signature_of
from onnxpart.torch.merge_optimizers import merge_optimizers
from onnxpart.torch.partwise_norm import PartwiseNorm, mixed_axis, norm_of
from onnxpart.torch.ranks import check_alike, check_trained, gathered, mesh_of, numbers_of
from onnxpart.torch.tensors import TensorRows, is_copied, to_array, to_tensor, to_tensor_like, unsharded


def split_module(
    module: nn.Module,
    example_inputs: Inputs,
    k: int = 2,
    *,
    order: str = "contiguous",
    seed: int = 0,
    shares: Sequence[int] | None = None,
    init: str = "slices",
    outputs: Sequence[str] | None = None,
    exporter: str = "auto",
    dynamic: Dynamic | None = None,
    undivided: Sequence[str] = (),
    everywhere: bool = False,
    weights: str | os.PathLike[str] | None = None,
) -> tuple[list[ImportedModule], Handle]:
    """Divide a module across its width into K modules that train alone, with a handle that merges them.

    In a process group of several ranks, every rank calls this and gets the parts that it trains. With more ranks than
    parts it gets one part, which the ranks of `Handle.mesh` share.

    :param module: any module that torch can export, compiled or not; it is left as it is.
    :param example_inputs, exporter, dynamic: see `export`.
    :param outputs: which of several results to keep: by the module's names if it has any, else `output_0`, `output_1`
        and so on. For the others see `split`. :param undivided: names of modules, or of parameters, that every part has
        whole. What merging keeps between divided parts, `merge` is told (`keep`).
    :param everywhere: whether every rank gets all parts, for trainers in which all ranks train each network.
    :param weights: for a module on the meta device: its safetensors file, or the index of its shards. Each part is read
        from there, and the graph isn't compared with the module.
    :returns: the parts, in training mode, on the module's device, with its signature, results in the structure that
        it returns in training, and parameters frozen as in the module; and the handle that merges them.
    :raises UsageError: for arguments that make no sense, or ranks that don't have the same module.
    :raises PartitionError: when nothing can be divided.
    :raises OnnxpartError: when the module can't be exported, or uses what the importer lacks.
    """
    own, numbers = uncompiled(module), range(k) if everywhere else numbers_of(k)
    stored = None if weights is None else values_of(own, read_shards(Path(weights)))
    module = module if stored is None else own
    draft = exported(own, example_inputs, exporter, dynamic, stored)
    model = replace(load(draft), name=type(own).__name__)
    every = [value.name for value in model.proto.graph.output]
    model = model if outputs is None else cut(model, outputs)
    names = _names(module, model)
    model = replace(model, parameters=frozenset(names.values()))
    whole = _undivided(names, undivided)
    divided = split(model, k, order=order, seed=seed, shares=shares, init=init, undivided=whole)
    if not everywhere:
        check_alike(divided.plan.digest, {n: t for n, t in module.state_dict().items() if not t.is_meta})
    parts = [imported(divided.part_drafts[number], _trained(module, names)) for number in numbers]
    kept = [every.index(value.name) for value in model.proto.graph.output if value.name in every]
    if len(kept) == len(model.proto.graph.output):
        interface = _interface(own, example_inputs, parts[0].inputs, kept, fake=stored is not None)
        for part in parts:
            _call_alike(part, interface)
    for part in parts:
        _train_alike(part, own, {})
    mesh = None if everywhere else mesh_of(k, _device(own).type)
    return parts, Handle(module, parts, divided, names, frozenset(whole), mesh, stored or {})


def check_merge_at(merge_at: float, epochs: float) -> None:
    """Check that both the parts and the whole get some of a trainer's epochs.

    :param merge_at: epochs of the parts. :param epochs: of both.
    :raises UsageError: if they don't.
    """
    if not 0 < merge_at < epochs:
        raise UsageError(f"merge_at is {merge_at} of {epochs} epochs; leave some for the parts and some for the whole.")


@dataclass(frozen=True, repr=False)
class Handle:
    """The way from the parts of a module back into it.

    `names` gives for each key of the module's `state_dict` that the graph computes with the initializer's name; tied
    parameters share one. `undivided` are the initializers that every part has whole on request. `mesh`: the ranks that
    train this one's parts together, for `DistributedDataParallel` or `fully_shard`; None without a process group.
    `parts` are this rank's own, and what merges calls for every rank. `stored`: what a module on the meta device has in
    files, by the keys of its `state_dict`.
    """

    module: nn.Module
    parts: Sequence[ImportedModule]
    split: Split
    names: Mapping[str, str]
    undivided: Collection[str] = ()
    mesh: DeviceMesh | None = None
    stored: Mapping[str, Rows] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The module and its parts, on one line."""
        return f"Handle({type(self.module).__name__}: {self._sizes()})"

    def _sizes(self) -> str:
        plan = self.split.plan
        sizes = ", ".join(f"{plan.parameters(p):,}" for p in range(plan.k))
        return f"{plan.k} parts of {sizes} parameters, of {plan.parameters():,}"

    def merge(
        self, states: Sequence[Mapping[str, Tensor]] | None = None, *, keep: bool | Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Merge the parts' parameters and buffers, Eq. (1) of section 2.2.

        Weights between parts are zero. Parameters that are frozen in the parts keep the module's weights there.

        :param states: `state_dict`s of the parts in order, such as averages or those of files; None: the present ones.
            In a process group those of this rank's parts; ranks that share a part give the same.
        :param keep: names of other parameters, or of modules with all below them, that keep theirs, too; True for all,
            as for a pretrained network.
        :returns: a `state_dict` that the module loads; what the graph doesn't use is as in the module.
            A module on the meta device takes it by `load_state_dict(.., assign=True)`.
        :raises UsageError: for a name without weights between parts, a module that ZeRO trains already, or ranks that
            trained the part that they share apart, or the parts of others with theirs.
        :raises MergeError: for states that don't fit.
        """
        if any(map(is_copied, self.module.parameters())):
            raise UsageError(
                "DeepSpeed trains copies of the module's weights already, which would not change; call "
                "deepspeed.initialize for the module once it has loaded what is merged."
            )
        edges, state = self._edges(keep), self.module.state_dict()
        merged = merge_to_original(self.split, self._arrays(states))
        original = {
            self.names[key]: self.stored[key] if value.is_meta else TensorRows(unsharded(value))
            for key, value in state.items()
            if key in self.names
        }
        return self.state_dict(fill_edges(self.split.plan, merged, original, edges))

    def _edges(self, keep: bool | Collection[str]) -> Edges:
        """Which weights between parts stay as they are: those of the named parameters, and of frozen ones.

        :raises UsageError: for a name without weights between parts.
        """
        plan = self.split.plan
        have, named = set(between(plan)), () if isinstance(keep, bool) else keep
        given = [_within(self.names, path) & have or {path} for path in named]
        edges = Edges(keep=None if keep is True else frozenset[str]().union(*given))
        edges.check(plan)
        return edges.keeping(_kept(plan, self._frozen()))

    def _frozen(self) -> list[set[str]]:
        """The initializers that are frozen in each part, those of all ranks."""
        return gathered([_frozen(part, self._copies) for part in self.parts], self.mesh)

    def state_dict(self, arrays: Mapping[str, Rows]) -> dict[str, Tensor]:
        """The module's state, versions of its modules included, with arrays in it, by initializer."""
        result = self.module.state_dict()
        for key, value in result.items():
            rows = arrays.get(self.names.get(key, ""), self.stored.get(key) if value.is_meta else None)
            result[key] = value if rows is None else to_tensor_like(value, stream(rows).array())
        return result

    def _arrays(self, states: Sequence[Mapping[str, Tensor]] | None) -> list[dict[str, np.ndarray]]:
        """For each part the arrays of its initializers, all that the module has, in its types; of all ranks' parts.

        :raises MergeError: where one is missing, or no tensor of floats. :raises UsageError: see `check_trained`.
        """
        given: Sequence[Mapping[str, object]]
        given = [part.state_dict(keep_vars=True) for part in self.parts] if states is None else states
        own = {self.names[key]: value.dtype for key, value in self.module.state_dict().items() if key in self.names}
        arrays = []
        for p, state in enumerate(given):
            tensors = {tensor_name(key): value for key, value in state.items() if isinstance(value, Tensor)}
            learned = {self._copies.get(n, n) for n, tensor in tensors.items() if tensor.is_floating_point()}
            lacking = sorted(set(self.names.values()) - learned)
            if lacking:
                raise MergeError(
                    f"part {p} has no {lacking[0]!r} of floats; undo what changed its layers (adapters, quantisation), "
                    "or give the states of these parts."
                )
            typed = {n: unsharded(t).to(own.get(self._copies.get(n, n), t.dtype)) for n, t in tensors.items()}
            arrays.append({name: TensorRows(tensor)[()] for name, tensor in typed.items()})
        if self.mesh is not None:
            learned_by = [{n for n, p in parameters(part).items() if p.requires_grad} for part in self.parts]
            pairs = zip(numbers_of(self.split.plan.k), arrays, learned_by, strict=True)
            check_trained({p: {n: array for n, array in held.items() if n in names} for p, held, names in pairs})
        return gathered(arrays, self.mesh)

    def fused(self) -> FusedParts:
        """The parts as one module that computes all of them at once; `merge(fused.states())` merges what it learned.

        :raises UsageError: when they aren't alike.
        """
        return FusedParts(self.parts)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The module's parameters by initializer."""
        own = dict(self.module.named_parameters(remove_duplicate=False))
        return {name: own[key] for key, name in self.names.items() if key in own}

    @property
    def exact(self) -> bool:
        """Whether the module computes the mean of the parts, at the linear outputs, once it has loaded `merge()`."""
        return not self._obstacles and not self._kept

    @property
    def _kept(self) -> list[str]:
        """Initializers that are frozen in all parts here, and so keep the weights between them."""
        return _kept(self.split.plan, [_frozen(part, self._copies) for part in self.parts])

    @cached_property
    def _obstacles(self) -> dict[int, str]:
        return obstacles(self.split)

    def duplicate(self, module: nn.Module) -> None:
        """Let the norms of a module normalise each part's units apart, so that it computes the mean of the parts.

        A norm over divided units differs from its copies in the parts. The paper's remedy is to duplicate it, which
        leaves parameters and `state_dict` as they are. A norm is any module whose parameters have a single axis, such
        as LayerNorm, RMSNorm, and your own.

        :param module: the module, or a copy of it; changed in place.
        :raises OnnxpartError: where that isn't enough; the module is then unchanged.
        """
        norms, covered = {}, set[int]()
        for path, child in module.named_modules(remove_duplicate=False):
            operators, units = self._norm(path, child)
            axis = mixed_axis(child) if operators else None
            if axis is not None:
                covered |= operators
                norms[path] = PartwiseNorm(child, units, axis)
            elif isinstance(child, PartwiseNorm):
                covered |= operators
        rest = [reason for i, reason in self._obstacles.items() if i not in covered]
        if rest:
            raise OnnxpartError(f"{rest[0]}, so the module can't compute the mean of the parts; whole() can.")
        for path, norm in norms.items():
            module.set_submodule(path, norm)

    def _norm(self, path: str, child: nn.Module) -> tuple[set[int], list[Tensor]]:
        """The operators of a norm over divided units, and the units of each part; none for another kind of module."""
        found = [self.names.get(f"{path}.{name}") for name, _ in child.named_parameters(recurse=False)]
        plans = [finest(self.split).by_name[name] for name in found if name is not None]
        kept = [[blocks[0][0] for blocks in planned.blocks] for planned in plans if len(planned.shape) == 1]
        if not kept or len(kept) < len(found) or kept != kept[:1] * len(kept) or None in kept[0]:
            return set(), []
        operators = set[int]().union(*(norm_of(self.split.analysis, planned.name) for planned in plans))
        units = [torch.from_numpy(from_ranges(ranges)) for ranges in kept[0] if ranges is not None]
        return operators & self._obstacles.keys(), units

    def whole(self) -> ImportedModule:
        """The duplicated whole with the parts' weights: it computes the mean of the parts whatever the graph."""
        result = self.network(self.split.whole_draft)
        merged = merge(self.split.plan, self._arrays(None))
        load_weights(result, {name: array for name, array in merged.items() if name in result.initializers})
        return result

    def divide_anew(self, seed: int) -> tuple[list[ImportedModule], Handle]:
        """Merge the parts and divide the result at random and evenly, for another round of independent subnet training.

        :returns: as many parts, which train on from these, and their handle. Before they train, `merge` gives for each
            weight that is in a part the same as here.
        """
        merged = {self.names[key]: to_array(tensor) for key, tensor in self.merge().items() if key in self.names}
        plan, model = self.split.plan, self.split.analysis.model
        divided = split(model, plan.k, order="random", seed=seed, undivided=self.undivided)
        numbers, arrays = range(plan.k) if self.mesh is None else numbers_of(plan.k), unmerge(divided.plan, merged)
        parts = [self.network(divided.part_drafts[number]) for number in numbers]
        for number, part in zip(numbers, parts, strict=True):
            load_weights(part, arrays[number])
        return parts, replace(self, parts=parts, split=divided)

    def merge_to(self, k: int, *, keep: bool | Collection[str] = ()) -> tuple[list[ImportedModule], Handle]:
        """Merge neighbouring parts into `k` larger ones, the hierarchical training of section 4.

        A larger part computes the mean of the parts in it, at the linear outputs, unless weights between them are kept.
        For that it holds once for each of the smallest parts what mixes units, and what each of these has its own of.
        What is frozen in the parts is frozen in it.

        :param k: more than 1, and a divisor of the number of parts. :param keep: see `merge`.
        :returns: the larger parts, in training mode on the module's device, and the handle that merges them into the
            module. `merge_optimizers_to` carries over what the optimizers remember.
        :raises UsageError: for another `k`, a name without weights between parts, or in a process group.
        """
        if self.mesh is not None:
            raise UsageError(
                "parts of several processes merge into the module only; give every rank all parts by everywhere=True."
            )
        model, frozen = self.split.analysis.model, self._frozen()
        larger = merge_to(self.split, in_types_of(model, self._arrays(None)), k, self._edges(keep))
        parts, size = [self.network(draft) for draft in larger.part_drafts], self.split.plan.k // k
        for p, part in enumerate(parts):
            held = set[str].intersection(*frozen[p * size : (p + 1) * size])
            for name, parameter in parameters(part).items():
                parameter.requires_grad_(self._copies.get(name, name) not in held)
        drafts = tuple(_held(draft, part) for draft, part in zip(larger.part_drafts, parts, strict=True))
        return parts, replace(self, parts=parts, split=replace(larger, part_drafts=drafts))

    def network(self, model: ModelProto | Draft) -> ImportedModule:
        """Import a model with the module's inputs and results; it is called and trained like the module."""
        trained = _trained(self.module, self.names)
        result = imported(model, trained | {copy for copy, name in self._copies.items() if name in trained})
        if isinstance(self.parts[0].forward, Forward):
            _call_alike(result, self.parts[0].forward.interface)
        _train_alike(result, uncompiled(self.module), self._copies)
        return result

    def report(self) -> str:
        """What is divided, averaged, zero or kept between parts, and why the module isn't their mean.

        And which of its results keep parts from being smaller.
        """
        plan, model = self.split.plan, self.split.analysis.model
        lines = [self._sizes()]
        if outputs := fewer_outputs(self.split.analysis, plan):
            rest = ", ".join(name for name in model.outputs if name not in outputs)
            lines += [f"{rest}: what is returned can't be divided; outputs={list(outputs)} makes smaller parts"]
        lines += [f"{title}: every part has its own" for title in plan.duplicated]
        lines += [f"{name!r}: every part has its own, and merging takes their mean" for name in plan.replicated]
        kept = self._kept
        zero = [name for name in between(plan) if name not in kept]
        frozen = set[str].intersection(*(_frozen(part, self._copies) for part in self.parts))
        reduced = [each.name for each in plan.initializers if each.reduces and each.name in frozen]
        lines += [f"weights between parts stay as they are in {', '.join(kept)}, frozen"] if kept else []
        lines += [f"divided by {plan.k} for the mean, though frozen: {', '.join(reduced)}"] if reduced else []
        lines += [f"weights between parts are zero after merging in {', '.join(zero)}"] if zero else []
        lines += [reason for i, reason in self._obstacles.items() if i not in plan.duplicated_nodes]
        far = "computes the mean of the parts" if self.exact else "is near the mean of the parts, not equal to it"
        return "\n".join([*lines, f"after merging the module {far}"])

    @cached_property
    def _copies(self) -> dict[str, str]:
        """The name of each copy of an initializer in a larger part or `whole()`, and the initializer's own."""
        plan = finest(self.split)
        apart = [each.name for each in plan.initializers if each.stored == "apart"]
        return {copy_name(name, p): name for name in apart for p in range(plan.k)}

    def merge_optimizer(self, optimizers: Sequence[torch.optim.Optimizer], target: torch.optim.Optimizer) -> None:
        """Merge the state of the parts' optimizers into that of one over the module's parameters.

        Any optimizer of torch's, a subclass, accelerate's wrapper, or ZeRO's (see `merge_optimizers`). Momenta and
        first moments go like the weights, second moments with the square of their scale, step counts are those of the
        part with the fewest. Rates and other settings stay those of the target's own parameter groups.

        :param optimizers: one per part in order. :param target: one of the same class.
        :raises UsageError: for another class, other settings, or another number of them.
        :raises MergeError: when they hold different states.
        """
        merged = partial(merge_states_to_original, self.split)
        held = [parameters(part) for part in self.parts]
        merge_optimizers(merged, optimizers, held, target, self.parameters, self.mesh, self._copies)

    def merge_optimizers_to(
        self,
        larger: Handle,
        optimizers: Sequence[torch.optim.Optimizer],
        targets: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Merge the states of the parts' optimizers into those of larger parts' (see `merge_optimizer`).

        :param larger: the handle that `merge_to` returned. :param optimizers: one per part, in order.
        :param targets: one per larger part, in order, of the same class.
        :raises UsageError: for another class, other settings, or another number of them.
        :raises MergeError: when they hold different states.
        """
        if (len(optimizers), len(targets)) != (len(self.parts), len(larger.parts)):
            raise UsageError(
                f"{len(optimizers)} optimizers of {len(self.parts)} parts, and {len(targets)} of {len(larger.parts)} "
                "larger ones; give one per part, in order."
            )
        plan, size = self.split.plan, len(self.parts) // len(larger.parts)
        for p, (part, target) in enumerate(zip(larger.parts, targets, strict=True)):
            members, own = slice(p * size, (p + 1) * size), parameters(part)
            merged = partial(merge_states, within(plan, larger.split.plan, p))
            held = [parameters(each) for each in self.parts[members]]
            merge_optimizers(merged, optimizers[members], held, target, own, copies=self._copies)


def _names(module: nn.Module, model: Model) -> dict[str, str]:
    """Key of the module's state -> initializer, for all that the model computes with.

    :raises OnnxpartError: for an initializer that isn't a parameter or buffer of the module.
    """
    state, given = (
        dict((*each.named_parameters(remove_duplicate=False), *each.named_buffers(remove_duplicate=False)))
        for each in (uncompiled(module), module)
    )
    weights = [n for n in model.initializers if model.is_float(n) and n not in model.constants]
    for name in weights:
        if name not in state or not (state[name].is_meta or _holds(state[name], array_of(model, name))):
            raise OnnxpartError(
                f"the exporter made the weight {name!r} of the module's parameters, and what the parts learn of it has "
                "no way back into them; choose the other exporter."
            )
    places = {_place(state[name]): name for name in weights}
    return {key: places[_place(value)] for key, value in given.items() if _place(value) in places}


def _undivided(names: Mapping[str, str], paths: Sequence[str]) -> set[str]:
    """The initializers of some modules and parameters.

    :raises UsageError: for one without any.
    """
    for path in paths:
        if not _within(names, path):
            raise UsageError(f"there is nothing to leave undivided in {path!r}; name a module with weights.")
    return set[str]().union(*(_within(names, path) for path in paths))


def _within(names: Mapping[str, str], path: str) -> set[str]:
    """The initializers of a module, with all below it, or of a parameter; also by the names of a compiled original."""
    return {name for key, name in names.items() if any(f"{each}.".startswith(f"{path}.") for each in (key, name))}


def _holds(tensor: Tensor, array: np.ndarray) -> bool:
    return tuple(tensor.shape) == array.shape and torch.equal(tensor.detach().cpu(), to_tensor(array))


def _place(tensor: Tensor) -> tuple[object, ...]:
    """A tensor's address, or its identity on the meta device; tied tensors have the same."""
    return tensor.data_ptr() or id(tensor), tuple(tensor.shape), tensor.stride()


def _trained(module: nn.Module, names: Mapping[str, str]) -> set[str]:
    """The initializers that are parameters of the module, single numbers included."""
    return {names[key] for key, _ in module.named_parameters(remove_duplicate=False) if key in names}


def _interface(
    module: nn.Module, example_inputs: Inputs, inputs: Sequence[str], kept: Sequence[int], *, fake: bool
) -> Interface:
    """The module's interface, for a graph with these inputs and the results of these numbers.

    The module runs once: with fake tensors if asked, else with real ones.
    """
    names = input_names(module, example_inputs)
    parameter = {graph: name for name, graph in names.items()}
    found = returned(module, example_inputs, fake=fake)
    signature = signature_of(module, names if isinstance(example_inputs, Mapping) else ())
    return Interface(signature, names, [parameter[name] for name in inputs], found, kept)


def _held(draft: Draft, part: ImportedModule) -> Draft:
    """A part's draft with its large weights in the part's memory, where those that it was merged from may go."""
    tensors = {tensor_name(key): tensor for key, tensor in part.state_dict().items()}
    return Draft(draft.proto, {name: stream(TensorRows(tensors[name])) for name in draft.streams})


def _call_alike(part: ImportedModule, interface: Interface) -> None:
    """Give a part the module's signature, and its results the structure of the module's."""
    part.forward = Forward(interface, partial(ImportedModule.forward, part))  # type: ignore[method-assign]


def _train_alike(part: ImportedModule, module: nn.Module, copies: Mapping[str, str]) -> None:
    """Freeze the parameters that are frozen in the module, their copies too, and move all to its device."""
    own = dict(module.named_parameters(remove_duplicate=False))
    for name, parameter in parameters(part).items():
        source = own.get(copies.get(name, name), parameter)
        parameter.requires_grad_(source.requires_grad)
    part.to(_device(module))


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters() if not parameter.is_meta), torch.device("cpu"))


def _frozen(part: ImportedModule, copies: Mapping[str, str]) -> set[str]:
    return {copies.get(name, name) for name, parameter in parameters(part).items() if not parameter.requires_grad}


def _kept(plan: Plan, frozen: Sequence[set[str]]) -> list[str]:
    """The initializers with weights between parts that are frozen in all of them."""
    return [name for name in between(plan) if all(name in names for names in frozen)]
