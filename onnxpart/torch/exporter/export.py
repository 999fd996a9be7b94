"""A PyTorch module as an ONNX file to train from: all its layers, and its parameters under their own names."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from onnxpart.errors import OnnxpartError, UsageError, reason
from onnxpart.ir.protos import unused
from onnxpart.storage.draft import Draft
from onnxpart.storage.onnx_file import MAX_PROTOBUF, save
from onnxpart.storage.rows import Rows
from onnxpart.torch.exporter.check import difference
from onnxpart.torch.exporter.dynamic_axes import Axes, differing, is_axes, named_axes, with_batch
from onnxpart.torch.exporter.fake import faked
from onnxpart.torch.exporter.frozen_values import Watch
from onnxpart.torch.exporter.gradients import gradient_difference
from onnxpart.torch.exporter.module_state import UnfitError, check_buffers, unchanged, uncompiled, values_of
from onnxpart.torch.exporter.packed import packed_layer
from onnxpart.torch.exporter.trainable_graph import folded, for_training
from onnxpart.torch.interface import results, signature_of

if TYPE_CHECKING:
    from onnxscript import ir

OPSET = 20
"""The newest that both exporters write."""
EXPORTERS = ("auto", "torchscript", "dynamo")
Inputs = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]
Named = dict[str, Tensor]
Dynamic = Axes | Inputs
"""The axes that may be of any size, or a second example, which differs from the first along them."""


def export(
    module: nn.Module,
    example_inputs: Inputs,
    path: str | os.PathLike[str],
    *,
    exporter: str = "auto",
    dynamic: Dynamic | None = None,
) -> None:
    """Write a module as an ONNX file from which it can be trained, and to which it can be merged back.

    The exporters' own defaults are for inference: batch norms folded, dropouts gone, weights transposed and renamed.
    Here all of them stay. Every parameter that the module's outputs depend on is an initializer with its own name and
    layout; other constants and buffers are Constant nodes. The file computes what the module does in evaluation mode,
    and has the module's gradients; both are checked. It records which parameters are frozen and which rows of
    embeddings are padding. Its first axis is symbolic. The module is left as it was, including its mode and buffers.

    :param example_inputs: a tensor, a tuple of them, or a dictionary by the names of `forward`'s parameters; the first
        axis is the batch. :param exporter: `torchscript`, `dynamo`, or `auto`: the second if the first fails.
    :param dynamic: axes besides the batch that may be of any size, such as `{"tokens": {1: "length"}}` or what
        torch.export takes, or an example with other sizes along them. Axes with the same name, or the same two sizes,
        have the same size. The file is compared with the module at another size, too.
    :raises UsageError: for inputs that aren't tensors, and axes that they don't have. :raises OnnxpartError: when no
        exporter can do it. :raises ModelError: when the file can't be written.
    """
    draft = exported(module, example_inputs, exporter, dynamic)
    size = sum(parameter.nbytes for parameter in module.parameters())
    save(draft if size >= MAX_PROTOBUF else draft.model(), path)


def exported(
    module: nn.Module,
    example_inputs: Inputs,
    exporter: str,
    dynamic: Dynamic | None = None,
    stored: Mapping[str, Rows] | None = None,
) -> Draft:
    """The model that `export` writes; large weights are in the module's memory.

    :param stored: the weights of a module on the meta device, by name. Then the model isn't compared with the module.
    """
    if exporter not in EXPORTERS:
        raise UsageError(f"the exporter {exporter!r} is unknown; choose one of {', '.join(EXPORTERS)}.")
    module = uncompiled(module)
    held = values_of(module, stored or {})
    inputs = _batches(_named(module, example_inputs))
    names = list(input_names(module, example_inputs).values())
    dynamic = {} if dynamic is None else dynamic
    if is_axes(dynamic):
        sizes = named_axes(inputs, dynamic)
    else:
        sizes = differing(inputs, _batches(_named(module, cast(Inputs, dynamic))))
    axes = with_batch(inputs, sizes)
    positional = not isinstance(example_inputs, Mapping)
    if stored is None:
        return _drafted(_Call(module, inputs, positional, names, axes), exporter, held)
    if exporter == "torchscript":
        raise UsageError("torchscript can't export a module on the meta device; choose the exporter dynamo.")
    with faked(module, inputs) as fakes:
        return _drafted(_Call(module, fakes, positional, names, axes), "dynamo", held, check=False)


def input_names(module: nn.Module, example_inputs: Inputs) -> dict[str, str]:
    """The name that `export` gives the graph's input for each of `forward`'s parameters, in their order."""
    taken = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    return {name: unused(name, taken) for name in _named(module, example_inputs)}


@torch.no_grad()
def returned(module: nn.Module, example_inputs: Inputs, *, fake: bool) -> object:
    """What a module returns for example inputs in training mode, the mode of the export; it is left as it was.

    :param fake: whether tensors without values are enough, such as those of a module on the meta device.
    """
    inputs = _batches(_named(module, example_inputs))
    with faked(module, inputs) if fake else contextlib.nullcontext(inputs) as taken, unchanged(module):
        module.train()
        return _Call(module, taken, not isinstance(example_inputs, Mapping)).returned()


class _Call:
    """What an exporter gets: a module, its inputs by parameter names, and the names of the graph's inputs."""

    def __init__(
        self,
        module: nn.Module,
        inputs: Named,
        positional: bool,
        names: Sequence[str] = (),
        axes: Sequence[dict[int, str]] = (),
    ) -> None:
        self.module, self.inputs, self.names = module, inputs, list(names)
        self.outputs: list[str] = []
        self.args = tuple(inputs.values()) if positional else ()
        self.kwargs = {} if positional else inputs
        self.axes = list(axes)

    def returned(self) -> object:
        """Call the module with the example's inputs."""
        return self.module(*self.args, **self.kwargs)

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Call the module; return its results in the graph's order."""
        found = self.module(*inputs.values()) if self.args else self.module(**inputs)
        return [tensor for _, tensor in results(found)]

    def torchscript(self, held: Mapping[str, Rows]) -> ir.Model:
        """Trace the module as it is.

        :param held: the values of parameters and buffers, by name.
        :raises OnnxpartError: if the module takes a number out of its inputs: tracing would freeze it.
        """
        from onnxscript import ir

        axes = {name: found for name, found in zip(self.names, self.axes, strict=True) if found}
        watches: list[Watch] = []
        with tempfile.TemporaryDirectory() as folder, _flat(self.module, list(self.kwargs), watches) as self.outputs:
            path = Path(folder) / "traced.onnx"
            torch.onnx.export(
                self.module, tuple(self.inputs.values()), path, input_names=self.names, opset_version=OPSET,
                dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, dynamic_axes=axes,
                export_params=False,
            )  # fmt: skip
            model = ir.load(path)
        place = next((watch.place for watch in watches if watch.place), "")
        if place:
            raise OnnxpartError(
                f"at {place} the module takes a number out of what it computes from its inputs, as for a branch, and "
                "tracing freezes it at that of the example's"
            )
        for value in [value for value in model.graph.inputs if value.name not in self.names]:
            model.graph.inputs.remove(value)
            value.const_value = _tensor(held, value)
            model.graph.register_initializer(value)
        return model

    def dynamo(self, held: Mapping[str, Rows]) -> ir.Model:
        """Take the module's program from torch.export.

        :param held: see `torchscript`.
        """
        sizes = {name: torch.export.Dim(name) for found in self.axes for name in found.values()}
        shapes: list[Any] = [{axis: sizes[name] for axis, name in found.items()} or None for found in self.axes]
        kinds = [parameter.kind for parameter in inspect.signature(self.module.forward).parameters.values()]
        if self.args and inspect.Parameter.VAR_POSITIONAL in kinds:  # whose values are one entry
            first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
            shapes[first:] = [tuple(shapes[first:])]
        with _flat(self.module, []) as self.outputs:
            # torch.export finds no sizes of what is in **kwargs
            self.module.forward.__dict__["__signature__"] = signature_of(self.module, self.kwargs)
            program = torch.onnx.export(
                self.module, self.args, kwargs=self.kwargs, input_names=self.names, opset_version=OPSET, verbose=False,
                dynamo=True, optimize=False,
                dynamic_shapes=tuple(shapes) if self.args else dict(zip(self.kwargs, shapes, strict=True)),
            )  # fmt: skip
        assert program is not None
        for value in program.model.graph.initializers.values():
            value.const_value = _tensor(held, value) if value.name in held else value.const_value
        return program.model


def _tensor(held: Mapping[str, Rows], value: ir.Value) -> ir.TensorProtocol:
    """The held value of a parameter or buffer."""
    from onnxscript import ir

    assert value.name is not None
    return ir.tensor(held[value.name][()], name=value.name)


@contextlib.contextmanager
def _flat(module: nn.Module, names: Sequence[str], watches: list[Watch] | None = None) -> Iterator[list[str]]:
    """Let a module return the tensors in its results as a tuple, and put their names into a list.

    :param names: inputs to take by position; else tracing makes inputs of numbers by default.
    :param watches: gets a watch for each run of the module, if given.
    """
    given, found = module.__dict__.get("forward"), list[str]()
    forward = module.forward

    @functools.wraps(forward)
    def flat(*args: object, **kwargs: object) -> object:
        named = dict(zip(names, args, strict=True)) if names else kwargs
        with contextlib.ExitStack() as stack:
            if watches is not None:
                watches.append(stack.enter_context(Watch([*args, *kwargs.values()])))
            value = forward(**named) if names else forward(*args, **named)
        pairs = list(results(value))
        if not pairs:
            raise UnfitError(f"it returns no tensor, but {type(value).__name__}; return the tensors in it")
        found[:] = [name for name, _ in pairs]
        return pairs[0][1] if len(pairs) == 1 else tuple(tensor for _, tensor in pairs)

    if names:
        del flat.__wrapped__
    module.__dict__["forward"] = flat
    try:
        yield found
    finally:
        module.__dict__.pop("forward", None)
        if given is not None:
            module.__dict__["forward"] = given


def _named(module: nn.Module, inputs: Inputs) -> Named:
    """The inputs by the names of `forward`'s parameters, in their order."""
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    values = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    if not values or not all(isinstance(value, Tensor) for value in values):
        kinds = ", ".join(type(value).__name__ for value in values) or "none"
        raise UsageError(f"the example inputs are {kinds}; give a tensor, a tuple of tensors or a dictionary of them.")
    known = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    if isinstance(inputs, Mapping):
        order = sorted(inputs, key=lambda name: known.index(name) if name in known else len(known))
        return {name: inputs[name] for name in order}
    names = [known[i] if i < len(known) else f"input_{i}" for i in range(len(values))]
    return dict(zip(names, values, strict=True))


def _batches(inputs: Named) -> Named:
    """The same with a batch of at least two, because exporters take a size of one as fixed."""
    if all(x.ndim and len(x) == 1 for x in inputs.values()):
        return {name: torch.cat([x, x]) for name, x in inputs.items()}
    return inputs


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep the exporters' warnings, logs and prints off the terminal, from Python and from C++."""
    level, saved = logging.root.manager.disable, [os.dup(fd) for fd in (1, 2)]
    try:
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context(tempfile.TemporaryFile())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
                stack.enter_context(redirect(io.StringIO()))
            for fd in (1, 2):
                os.dup2(sink.fileno(), fd)
            yield
    finally:
        logging.disable(level)
        for fd, old in zip((1, 2), saved, strict=True):
            os.dup2(old, fd)
            os.close(old)


def _drafted(call: _Call, exporter: str, held: Mapping[str, Rows], *, check: bool = True) -> Draft:
    """The model by the first allowed exporter that can write it, with the held values."""
    attempts = {
        "torchscript": call.torchscript,
        "dynamo": call.dynamo,
    }
    module, problems, advice = call.module, defaultdict[str, list[str]](list), ""
    for name in attempts if exporter == "auto" else [exporter]:
        try:
            with unchanged(module), silent():
                module.train()
                draft = folded(_with_constant_buffers(attempts[name](held), call), module, held)
            draft = for_training(draft, module, call.outputs, held)
            if not check:
                return draft
            with unchanged(module), silent():
                module.eval()
                problem = difference(draft, call.run, call.inputs, call.axes)
                problem = problem or gradient_difference(draft, module, call.run, call.inputs)
        except ImportError as error:
            problem = f"it needs {error.name} (pip install {error.name})"
        except UnfitError as error:
            raise OnnxpartError(f"{type(module).__name__} can't be exported: {error}.") from None
        except OnnxpartError as error:
            problem = str(error)
        except Exception as error:  # whatever the module or the exporter raises: they share no base class
            problem = first_line(error)
            advice = (
                " Check that it runs on the example inputs, and write what is named there in operations that ONNX has."
            )
        if problem is None:
            return draft
        problems[problem].append(name)
    with unchanged(module):
        layer = packed_layer(module, call.returned) if exporter != "dynamo" else None
    if layer is not None:
        raise OnnxpartError(
            f"{type(module).__name__} can't be exported: {layer!r} gets a packed sequence, whose lengths exporters "
            "know only where pad_packed_sequence unpacks what it returns; take each sequence's last output from there, "
            "in place of its last states."
        )
    told = [f"{' and '.join(names)}: {problem}" for problem, names in problems.items()]
    raise OnnxpartError(f"{type(module).__name__} can't be exported: {'; '.join(told)}.{advice}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or of its cause's, with its type unless it is ours."""
    while error.__cause__ is not None:
        error = error.__cause__
    told, kind = reason(error), type(error).__name__
    return told if isinstance(error, OnnxpartError) or told == kind else f"{told[:300]} ({kind})"


def _with_constant_buffers(model: ir.Model, call: _Call) -> ir.Model:
    """The model without the nodes that nothing reads.

    :raises OnnxpartError: if it computes with buffers that aren't constant.
    """
    from onnxscript.optimizer import remove_unused_nodes

    remove_unused_nodes(model)
    check_buffers(call.module, call.returned, model.graph.all_nodes())
    return model
