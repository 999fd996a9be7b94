"""The window that convolutions and pooling slide over the spatial axes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators import runtime


class Window:
    """The attributes of an operator that slides a window over the spatial axes, with defaults filled in."""

    def __init__(self, node: Node) -> None:
        shape = node.attribute("kernel_shape", []) or (node.shape(1) or [])[2:]
        kernel = [size for size in shape if size is not None]
        if not kernel or len(kernel) < len(shape):
            raise node.error("the kernel's shape is unknown; add the attribute kernel_shape")
        self.node, self.kernel, self.rank = node, kernel, len(kernel)
        if self.rank > 3:
            raise node.error(f"{self.rank} spatial axes, torch has at most 3; merge some by Reshape")
        self.strides = node.attribute("strides", [1] * self.rank)
        self.dilations = node.attribute("dilations", [1] * self.rank)
        self.pads = node.attribute("pads", [0] * 2 * self.rank)
        self.auto_pad = node.attribute("auto_pad", "NOTSET")
        if self.auto_pad == "VALID":
            self.pads = [0] * 2 * self.rank
        self.begins = self.pads[: self.rank]
        self._spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def pad(self, x: Tensor, value: float, at_most: int | None = None) -> tuple[Tensor, list[int]]:
        """Pad x [N, C, ...] if torch's function can't; return it, and the padding that is left to torch.

        It can't if the pads of both ends differ, or exceed a share `1 / at_most` of the window.
        """
        pads = self.pads
        if self.auto_pad.startswith("SAME"):
            upper, shape = self.auto_pad == "SAME_UPPER", self.node.shape(0)
            sizes = shape[2:] if shape else [None] * self.rank
            sizes = [1 if stride == 1 else size for size, stride in zip(sizes, self.strides, strict=True)]
            known = [size for size in sizes if size is not None]
            if len(known) < self.rank:
                x = self.node.call(runtime.pad_same, x, self._spans, self.strides, upper, value)
                return x, [0] * self.rank
            pads = runtime.same_pads(known, self._spans, self.strides, upper)
        self.begins = pads[: self.rank]
        begins, ends = pads[: self.rank], pads[self.rank :]
        fits = not at_most or all(b <= k // at_most for b, k in zip(begins, self.kernel, strict=True))
        if begins == ends and fits:
            return x, begins
        return F.pad(x, runtime.torch_pads(pads), value=value), [0] * self.rank

    def sum_settings(self, ceil: bool) -> tuple[list[int], list[int], list[int], list[int], bool]:
        """Return the settings of sums over windows, with auto_pad resolved."""
        pads = self.pads
        if self.auto_pad.startswith("SAME"):
            shape = (self.node.shape(0) or [None])[2:]
            sizes = [size for size in shape if size is not None]
            if len(sizes) < self.rank:
                raise self.node.unknown("its input's size is unknown")
            pads = runtime.same_pads(sizes, self._spans, self.strides, self.auto_pad == "SAME_UPPER")
        return self.kernel, self.strides, pads, self.dilations, ceil
