"""The passes that bring a model into canonical form, in order, and what holds after each.

A pass takes a model and returns one. It may change the proto that it is given, since copying large weights would cost
too much. So nothing uses a model again after it went into a pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from onnxpart.errors import ModelError
from onnxpart.frontend import sequences, simplify
from onnxpart.frontend.einsum_pairs import einsums_in_pairs, pair_einsums
from onnxpart.frontend.functions import without_functions
from onnxpart.frontend.loop_invariants import LOOPS
from onnxpart.frontend.masked_rows import WRITE
from onnxpart.frontend.norm_statistics import own_statistics
from onnxpart.frontend.product_sums import SUM
from onnxpart.ir import validate
from onnxpart.ir.flatten import Misfit
from onnxpart.ir.infer import MAKERS, MAX_LIST, long_lists
from onnxpart.ir.model import Model
from onnxpart.ir.protos import constant_value, live
from onnxpart.ir.unflatten import normal
from onnxpart.ir.validate import Contract


@dataclass(frozen=True)
class Pass:
    """A pass: what it is called, its function, and what holds from then on.

    In a model with none of its `operators` it has nothing to do. A pass that simplifies returns the same object if
    nothing was left to do; if it changed something, all passes run again.
    """

    name: str
    run: Callable[[Model], Model]
    holds: Contract
    operators: frozenset[str] = frozenset()

    @property
    def simplifies(self) -> bool:
        """Whether all passes run again where it changed something."""
        return bool(self.operators)


def inline_functions(model: Model) -> Model:
    """Local functions are written out where they are called."""
    return replace(model, proto=without_functions(model.proto))


def separate_statistics(model: Model) -> Model:
    """Running statistics of batch norms become initializers that nothing else reads (see `own_statistics`)."""
    own_statistics(model.proto)
    return replace(model)


def pair(model: Model) -> Model:
    """Einsums of several operands are written as Einsums of two."""
    pair_einsums(model.proto)
    return replace(model)


def lift_constants(model: Model) -> Model:
    """Constant nodes that hold numbers become initializers; nodes that lead to no output are left out."""
    graph = model.proto.graph
    kept, constants = [], set(model.constants)
    for node in live(graph.node, model.outputs)[0]:
        tensor = constant_value(node)
        if tensor is None:
            kept.append(node)
        else:
            graph.initializer.append(tensor)
            constants.add(tensor.name)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)
    return replace(model, constants=frozenset(constants))


def share_namespace(model: Model) -> Model:
    """Graphs inside nodes get names and initializers in common with the outermost one.

    :raises ModelError: when such a graph doesn't fit its node.
    """
    try:
        constants = normal(model.proto.graph, model.opsets[""])
    except Misfit as misfit:
        raise ModelError(f"{model.name}: {misfit}; fix the export.") from None
    return replace(model, constants=model.constants | constants)


def separate_inputs(model: Model) -> Model:
    """Initializers are no longer listed among the inputs."""
    proto = model.proto
    names = {tensor.name for tensor in proto.graph.initializer}
    if any(value.name in names for value in proto.graph.input):
        inputs = [value for value in proto.graph.input if value.name not in names]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, 4)  # before that, initializers were inputs, too
    return replace(model)


def refuse_long_lists(model: Model) -> Model:
    """Lists of integers that would take unbounded memory are refused.

    :raises ModelError: when a list of integers is longer than any that tells sizes.
    """
    found = [] if MAKERS.isdisjoint(model.op_types) else long_lists(model.proto.graph)
    if found:
        raise ModelError(f"{model.name}: {found[0]!r} is a list of more than {MAX_LIST:,} integers; fix the export.")
    return model


def no_long_lists(model: Model) -> Iterator[str]:
    """No list of integers is longer than any that tells sizes."""
    yield from (f"{name!r} is a long list" for name in long_lists(model.proto.graph))


PASSES = (
    Pass("functions", inline_functions, validate.no_functions),
    Pass("norm statistics", separate_statistics, validate.own_statistics),
    Pass("Einsums", pair, einsums_in_pairs),
    Pass("constants", lift_constants, validate.no_constants),
    Pass("scopes", share_namespace, validate.one_namespace),
    Pass("inputs", separate_inputs, validate.inputs_apart),
    Pass("long lists", refuse_long_lists, no_long_lists),
    Pass("loop invariants", simplify.free_states, simplify.no_invariants, LOOPS),
    Pass("branches", simplify.take_branches, simplify.no_known_branches, frozenset({"If"})),
    Pass("sequences", simplify.replace_sequences, simplify.no_plain_sequences, sequences.OPERATORS),
    Pass("sums", simplify.contract, simplify.no_spelled_contractions, frozenset({SUM})),
    Pass("rows", simplify.write_rows, simplify.no_rows_by_element, frozenset({WRITE})),
)
"""All passes, in order."""


def run(model: Model) -> Model:
    """The model in canonical form: what all `PASSES` promise holds.

    :raises ModelError: when a graph inside a node doesn't fit it, or shapes contradict each other.
    """
    return deque(steps(model), maxlen=1).pop()[1]


def steps(model: Model) -> Iterator[tuple[Pass, Model]]:
    """Each pass that ran, with what it gave, up to the canonical form."""
    number = 0
    while number < len(PASSES):
        step, before = PASSES[number], model
        if not step.simplifies or not step.operators.isdisjoint(model.op_types):
            model = step.run(before)
            yield step, model
        number = 0 if step.simplifies and model is not before else number + 1
