"""Training in PyTorch: import an ONNX model, train it, write its weights back."""

from onnxpart.torch import operators as operators
from onnxpart.torch.export import export
from onnxpart.torch.importer import import_onnx
from onnxpart.torch.module import ImportedModule, export_weights, load_weights, weights
from onnxpart.torch.parts import Handle, split_module
from onnxpart.torch.store import escape, unescape

__all__ = [
    "Handle",
    "ImportedModule",
    "escape",
    "export",
    "export_weights",
    "import_onnx",
    "load_weights",
    "split_module",
    "unescape",
    "weights",
]
