"""Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxpart.torch.importer.node import Node
from onnxpart.torch.importer.operators.registry import operator


def _dft(x: Tensor, length: int | None, axis: int, inverse: bool, onesided: bool) -> Tensor:
    """A Fourier transform along an axis; the last axis has length 1 for reals, 2 for real and imaginary part."""
    axis = axis % x.dim()
    size = x.shape[axis] if length is None else length
    if inverse and onesided:
        size = 2 * (x.shape[axis] - 1) if length is None else length
        result: Tensor = torch.fft.irfft(torch.view_as_complex(x.contiguous()), size, axis).unsqueeze(-1)
        return result
    values = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    if onesided:
        return torch.view_as_real(torch.fft.rfft(values.real if values.is_complex() else values, size, axis))
    return torch.view_as_real((torch.fft.ifft if inverse else torch.fft.fft)(values, size, axis))


@operator("DFT", since=20)
def dft(node: Node) -> Tensor:
    """Transform along an axis of numbers that are real [.., 1] or complex [.., 2]."""
    return _transform(node, int(node.scalar(2, -2.0) or 0))


@operator("DFT", since=17)
def dft_along_attribute(node: Node) -> Tensor:
    """Transform along an axis, which is an attribute before opset 20."""
    return _transform(node, node.attribute("axis", 1))


def _transform(node: Node, axis: int) -> Tensor:
    length = node.scalar(1, None)
    settings = [bool(node.attribute(name, 0)) for name in ("inverse", "onesided")]
    return node.call(_dft, node.tensor(0), None if length is None else int(length), axis, *settings)


def _stft(x: Tensor, step: int, window: Tensor | None, length: int | None, onesided: bool) -> Tensor:
    values = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.flatten(1)
    if length is None:
        if window is None:
            raise ValueError("neither a window nor a frame length is given")
        length = window.shape[0]
    frames = values.unfold(1, length, step)
    if window is not None:
        frames = frames * F.pad(window, (0, length - window.shape[0]))
    return torch.view_as_real(torch.fft.rfft(frames) if onesided else torch.fft.fft(frames))


@operator("STFT", since=17)
def stft(node: Node) -> Tensor:
    """Transform windows of a signal [N, length, 1 or 2], which start a step apart."""
    step, length = node.scalar(1, None), node.scalar(3, None)
    if step is None:
        raise node.error("the step is missing; check the model with onnx.checker")
    onesided = bool(node.attribute("onesided", 1))
    return node.call(
        _stft, node.tensor(0), int(step), node.optional(2), None if length is None else int(length), onesided
    )
