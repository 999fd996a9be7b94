"""The imported module; its tensors become arrays by initializer name, and back."""

from collections.abc import Mapping, Sequence
from traceback import walk_tb
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from onnxpart.errors import OnnxpartError, UsageError, reason
from onnxpart.frontend.norm_statistics import own_statistics
from onnxpart.ir.protos import all_graphs
from onnxpart.torch.importer.checkpointing import Checkpointed, trained_calls
from onnxpart.torch.importer.graph_module import Body, Program
from onnxpart.torch.tensors import to_array, to_tensor, unescape


class ImportedModule(Body):
    """A model as a module: its tensors are in the tree that their names make, in torch's own layers.

    `inputs`: the names of the graph's inputs, with the sizes of their axes after the batch (0: any). `initializers`:
    the names of the model's initializers.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]], initializers: frozenset[str]) -> None:
        super().__init__()
        self.inputs, self.initializers = list(inputs), initializers
        self.sizes = [tuple(sizes) for sizes in inputs.values()]

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Compute the outputs from the inputs, both in graph order; the last inputs may go by their names.

        :raises OnnxpartError: when torch can't compute a node from its inputs, or when an input has another size than
            the model: a loop over that axis may have been unrolled for the model's size.
        """
        if named:
            inputs = (*inputs, *self._in_order(named, self.inputs[len(inputs) :]))
        for name, value, sizes in zip(self.inputs, inputs, self.sizes, strict=False):
            for axis, wanted in enumerate(sizes, 1):
                if wanted and axis < value.dim() and value.shape[axis] != wanted:
                    raise OnnxpartError(
                        f"the input {name!r} has size {value.shape[axis]} along axis {axis}, but the model was "
                        f"exported for {wanted}; feed that size, or export the model again with this one."
                    )
        try:
            result: torch.Tensor | tuple[torch.Tensor, ...] = super().forward(*inputs)
        except (ArithmeticError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError) or _of_others(error):
                raise
            raise OnnxpartError(
                f"{self.program.failed(error) or 'the model'}: {reason(error)}; check what the model is fed."
            ) from error
        return result

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Keep only activations between residual blocks, and compute the rest again for the gradients.

        The Trainer of transformers calls this on request. Only the defaults of its options are supported.

        :raises UsageError: for other options, and for a network without residual blocks.
        """
        if (activation_checkpointing_kwargs or {}).get("use_reentrant") or every_n_layers != 1 or offload:
            raise UsageError("activations of parts are checkpointed at every residual block; leave out the options.")
        self.program = Checkpointed(self.program.graph, trained_calls(self.program.graph, self))

    def activation_checkpointing_disable(self) -> None:
        """Keep all activations for the gradients."""
        self.program = Program(self.program.graph)

    def _in_order(self, named: Mapping[str, torch.Tensor], order: Sequence[str]) -> list[torch.Tensor]:
        """Return inputs by name in the order of the graph."""
        if sorted(named) != sorted(order):
            given, wanted = (", ".join(names) or "none" for names in (named, order))
            raise OnnxpartError(f"the inputs given by name are {given}, but the model takes {wanted}; use its names.")
        return [named[name] for name in order]


def _of_others(error: Exception) -> bool:
    """Whether an error is about other processes, from which a layer that is sharded gets its weights."""
    frames = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return any(name.startswith("torch.distributed.") for name in frames)


def tensor_name(key: str) -> str:
    """Return the initializer's name for a key of the module's `state_dict` or `named_parameters`."""
    return unescape(key)


def parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by the initializers' names."""
    return {tensor_name(key): parameter for key, parameter in module.named_parameters()}


def weights(module: ImportedModule) -> dict[str, np.ndarray]:
    """Copy the parameters and buffers that are initializers into arrays, by name.

    Initializers that the module doesn't hold, such as target shapes, are left out.
    """
    return {name: to_array(tensor) for name, tensor in _tensors(module).items() if name in module.initializers}


def load_weights(module: ImportedModule, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy arrays into the parameters and buffers of the same names; the others stay as they are.

    Arrays for initializers that the module doesn't hold, such as target shapes, are ignored.
    :raises OnnxpartError: for a name that isn't an initializer of the model, or a wrong shape.
    """
    tensors = _tensors(module)
    for name, array in arrays.items():
        if name not in tensors and name not in module.initializers:
            raise OnnxpartError(f"{name!r} isn't an initializer of the model; load arrays of the same model.")
        if name in tensors:
            _copy(name, array, tensors[name])


def export_weights(module: ImportedModule, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model whose initializers hold the module's parameters and buffers.

    Batch-norm statistics that shared an initializer have their own there (see `norm_statistics.own_statistics`).
    :raises OnnxpartError: if the module wasn't imported from this model.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    own_statistics(result)
    initializers = {tensor.name: tensor for graph in all_graphs(result.graph) for tensor in graph.initializer}
    tensors = _tensors(module)
    for name in tensors.keys() & module.initializers:
        if name not in initializers or list(tensors[name].shape) != list(initializers[name].dims):
            raise OnnxpartError(f"the model has no initializer {name!r} of this shape; export into the imported model.")
        initializers[name].CopyFrom(_proto(name, tensors[name], initializers[name].data_type))
    return result


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {tensor_name(key): tensor for key, tensor in module.state_dict(keep_vars=True).items()}


def _proto(name: str, tensor: torch.Tensor, data_type: int) -> onnx.TensorProto:
    array = to_array(tensor).astype(onnx.helper.tensor_dtype_to_np_dtype(data_type))
    return onnx.numpy_helper.from_array(array, name)


@torch.no_grad()
def _copy(name: str, array: np.ndarray, tensor: torch.Tensor) -> None:
    if tuple(array.shape) != tuple(tensor.shape):
        raise OnnxpartError(
            f"{name!r} has shape {tensor.shape}, but the array has {array.shape}; load arrays of the same model."
        )
    tensor.copy_(to_tensor(array))
