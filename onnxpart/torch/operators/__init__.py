"""The table of ONNX operators in terms of torch; importing this folder fills it."""

from onnxpart.torch.operators import elementwise, layers, movement

__all__ = ["elementwise", "layers", "movement"]
