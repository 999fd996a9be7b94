"""Parts of equal shapes as one module, for your own training loop."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from onnxpart.torch.importer.module import ImportedModule
from onnxpart.torch.importer.tree import plant
from onnxpart.torch.interface import Forward
from onnxpart.torch.training.fused import check_alike
from onnxpart.torch.training.grouped_kernels import use_grouped_kernels


class FusedParts(nn.Module):
    """Computes all parts at once: tensors have the parts' names, and a first axis for the parts.

    With an optimizer that treats each element alone, and a loss summed over the parts, each part trains as if alone.

    :param parts: of the same shapes; they are left as they are.
    :raises UsageError: when they differ in more than their weights.
    """

    def __init__(self, parts: Sequence[ImportedModule]) -> None:
        super().__init__()
        check_alike(parts)
        parameters, buffers = stack_module_state(list(parts))
        held = {key: nn.Parameter(tensor.detach(), tensor.requires_grad) for key, tensor in parameters.items()}
        plant(self, {**held, **buffers})
        base = copy.deepcopy(parts[0]).to("meta")
        forward = base.__dict__.pop("forward", None)
        use_grouped_kernels(base)
        self.__dict__["_base"] = base  # no child, whose parameters would be the module's
        self._interface = forward.interface if isinstance(forward, Forward) else None
        self._count = len(parts)

    def forward(self, *args: Any, **named: Any) -> Any:
        """Call all parts with the same arguments; the returned tensors have the parts as their first axis [part, ...].

        :raises UsageError: if arguments don't fit. :raises OnnxpartError: if the graph can't compute with them.
        """
        inputs = args if self._interface is None else self._interface.tensors(args, named)
        base = self.__dict__["_base"].train(self.training)

        def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], *inputs: Tensor) -> Any:
            return functional_call(base, (parameters, buffers), inputs)

        called = vmap(call, in_dims=(0, 0, *[None] * len(inputs)), randomness="different")
        outputs = called(dict(self.named_parameters()), dict(self.named_buffers()), *inputs)
        if self._interface is None:
            return outputs
        return self._interface.returned([outputs] if isinstance(outputs, Tensor) else outputs)

    def states(self) -> list[dict[str, Tensor]]:
        """Return the `state_dict` of each part, as `Handle.merge` takes them."""
        held = self.state_dict()
        return [{key: tensor[p] for key, tensor in held.items()} for p in range(self._count)]
