"""The table of ONNX operators in terms of torch; importing this folder fills it."""

from onnxpart.torch.operators import elementwise, layers, movement, recurrent

__all__ = ["elementwise", "layers", "movement", "recurrent"]
