"""Calls that read all tensors of one module become calls of torch's own layer in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, fx, nn
from torch.nn import functional as F

from onnxpart.torch.importer.fuse import SHAPE
from onnxpart.torch.importer.operators.modules import BatchNorm

Settings: TypeAlias = Mapping[str, Any]
Tensors: TypeAlias = Mapping[str, Tensor]
_TENSORS = ("weight", "bias", "running_mean", "running_var")
"""Layers' names of their tensors, and functions' names of the arguments for these."""


def use_layers(graph: fx.Graph, root: nn.Module) -> None:
    """Let a graph call layers in place of functions of their tensors, so that hooks on layers run; its results stay.

    :param graph: changed in place. :param root: holds the graph's tensors; layers take the place of containers.
    """
    made: dict[str, object] = {}
    for node in list(graph.nodes):
        form = _form(node, root)
        if form is None:
            continue
        names, build = form
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        path, tensors = _own(given, root)
        settings = {key: value for key, value in given.items() if key not in ("input", *_TENSORS)}
        if not path or len(node.all_input_nodes) > len(tensors) + 1 or not isinstance(given["input"], fx.Node):
            continue
        if path not in made:
            layer, place = build(settings, tensors), root.get_submodule(path)
            for name, held in (*tensors.items(), *place.named_children()):
                setattr(layer, name, held)
            root.set_submodule(path, layer)
            made[path] = names, settings
        if made[path] == (names, settings):
            with graph.inserting_before(node):
                call = graph.call_module(path, (given["input"],))
            call.meta = dict(node.meta)
            node.replace_all_uses_with(call)
            graph.erase_node(node)


def _own(given: Settings, root: nn.Module) -> tuple[str, Tensors]:
    """The path of the module that has just the tensors of a call, and these by name; empty if there is none."""
    sources = {name: given[name] for name in _TENSORS if given.get(name) is not None}
    targets = {name: str(v.target) for name, v in sources.items() if isinstance(v, fx.Node) and v.op == "get_attr"}
    paths = {target.removesuffix(f".{name}") for name, target in targets.items()}
    path = paths.pop() if len(paths) == 1 else ""
    if not path or len(targets) < len(sources) or any(target == path for target in targets.values()):
        return "", {}
    module = root.get_submodule(path)
    held = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    learned = {name for name, tensor in held.items() if isinstance(tensor, nn.Parameter)}
    fits = held.keys() == targets.keys() and learned == held.keys() & {"weight", "bias"}
    return (path, held) if fits else ("", {})


_Build: TypeAlias = Callable[[Settings, Tensors], nn.Module]


def _form(node: fx.Node, root: nn.Module) -> tuple[tuple[str, ...], _Build] | None:
    """The names of a call's arguments in order, and what makes the layer that does the same; None for other calls."""
    if node.op == "call_module":
        layer = root.get_submodule(str(node.target))
        if type(layer) is BatchNorm and layer.kind is not None and not layer.returned:
            return ("input", *_TENSORS), _batch_norm(layer)
    if node.op == "call_function" and node.target is F.instance_norm:
        kind = _INSTANCE_NORMS.get(len(node.args[0].meta.get(SHAPE, ()))) if isinstance(node.args[0], fx.Node) else None
        return None if kind is None else (("input",), _instance_norm(kind))
    return _FORMS.get(node.target) if node.op == "call_function" else None


def _linear(_: Settings, tensors: Tensors) -> nn.Module:
    outputs, inputs = tensors["weight"].shape
    return nn.Linear(inputs, outputs, "bias" in tensors, device="meta")


def _embedding(settings: Settings, tensors: Tensors) -> nn.Module:
    rows, width = tensors["weight"].shape
    return nn.Embedding(rows, width, settings["padding_idx"], device="meta")


def _layer_norm(settings: Settings, tensors: Tensors) -> nn.Module:
    return nn.LayerNorm(settings["normalized_shape"], settings["eps"], bias="bias" in tensors, device="meta")


def _group_norm(settings: Settings, tensors: Tensors) -> nn.Module:
    return nn.GroupNorm(settings["num_groups"], len(tensors["weight"]), settings["eps"], device="meta")


def _rms_norm(settings: Settings, _: Tensors) -> nn.Module:
    return nn.RMSNorm(settings["normalized_shape"], settings["eps"], device="meta")


def _prelu(_: Settings, tensors: Tensors) -> nn.Module:
    return nn.PReLU(len(tensors["weight"]), device="meta")


def _instance_norm(kind: type[nn.modules.instancenorm._InstanceNorm]) -> _Build:
    def build(settings: Settings, tensors: Tensors) -> nn.Module:
        return kind(len(tensors["weight"]), settings["eps"], affine=True, device="meta")

    return build


def _batch_norm(layer: BatchNorm) -> _Build:
    def build(_: Settings, tensors: Tensors) -> nn.Module:
        assert layer.kind is not None
        made = layer.kind(len(tensors["weight"]), layer.epsilon, layer.momentum, device="meta")
        made.num_batches_tracked = None  # which no ONNX file holds
        return made

    return build


def _convolution(kind: Callable[..., nn.Module], transposed: bool) -> _Build:
    def build(settings: Settings, tensors: Tensors) -> nn.Module:
        first, second, *window = tensors["weight"].shape
        second *= settings["groups"]
        sizes = (first, second) if transposed else (second, first)
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return kind(*sizes, tuple(window), **given, bias="bias" in tensors, device="meta")

    return build


_INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
"""By the rank of their inputs."""
_STRIDED = ("input", "weight", "bias", "stride", "padding")
_FORMS: Mapping[object, tuple[tuple[str, ...], _Build]] = {
    F.linear: (("input", "weight", "bias"), _linear),
    F.embedding: (("input", "weight"), _embedding),
    F.layer_norm: (("input", "normalized_shape", "weight", "bias", "eps"), _layer_norm),
    F.group_norm: (("input", "num_groups", "weight", "bias", "eps"), _group_norm),
    F.rms_norm: (("input", "normalized_shape", "weight", "eps"), _rms_norm),
    F.prelu: (("input", "weight"), _prelu),
    **{
        function: ((*_STRIDED, "dilation", "groups"), _convolution(kind, transposed=False))
        for function, kind in ((F.conv1d, nn.Conv1d), (F.conv2d, nn.Conv2d), (F.conv3d, nn.Conv3d))
    },
    **{
        function: ((*_STRIDED, "output_padding", "groups", "dilation"), _convolution(kind, transposed=True))
        for function, kind in (
            (F.conv_transpose1d, nn.ConvTranspose1d),
            (F.conv_transpose2d, nn.ConvTranspose2d),
            (F.conv_transpose3d, nn.ConvTranspose3d),
        )
    },
}
